r"""A language model as a recommender: prompts of titles, the states below its last layers kept, scores of all items.

With the tokens x of a prompt, which names the last items of a history, and a model of width d whose last k layers are
trained::

    S       = the layers below, of x                      computed once and kept: training leaves it as it is
    h       = norm(the last k layers, of S) at the end     with adapters of low rank on queries and values
    t_i     = m_i - mean_j m_j, at length 1                m_i: mean hidden state of the title of item i, fixed
    score_i = <W drop(h), t_i> / sqrt(d) + b_i             for every item i

Trained are the adapters, W and b. A prompt names the newest items and as many older ones as fit into its tokens, the
oldest first. Padding stands at the right of the end, where no token looks, so it changes no state.

On a CPU, whole epochs through 135 million parameters are out of reach. With kept states a step costs two layers.
`TitleHead` has no head but the model's own: the score of an item is the log-probability of its title. It needs whole
passes, and beams for every list: for small models.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from upright.contract import InputError
from upright.language.adapters import adapted, quiet
from upright.language.encoding import Encoded, collate, length_batches, refuse_mismatch
from upright.language.logprobs import sample_means, token_log_probs
from upright.language.references import cached_tensors, model_key
from upright.language.titles import TitleTrie, prefix_ids, title_ids
from upright.models.sequential import SeededDropout, refuse_histories

__all__ = ["ItemHead", "KeptStates", "TitleHead"]

_BEGIN, _AFTER_TITLE = "Chosen in this order:", ";"
_ROWS = 16
"""Prompts of one pass without gradients."""
Ids = tuple[int, ...]


class _Reached(Exception):
    """Carries the input of a layer that need not run."""


class KeptStates:
    """Hidden states of prompts below the last layers of a language model, each computed once.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model of decoder layers with ``q_proj`` and ``v_proj``, in float32; it stays as it is.
    tokenizer : PreTrainedTokenizerBase
    titles : sequence of str, length I
        As they shall be written: see `natural_title`.
    layers : int
        k, at least 1 and below the layers of the model.
    prompt_titles, prompt_tokens : int
        Most titles and tokens of a prompt. The longest title must fit.
    folder : path, optional
        Where states are kept under the SHA-256 of weights, settings, prompts and k, 4 d bytes a token; None keeps them
        in memory alone.

    Raises
    ------
    InputError
        For a tokenizer that does not fit, an empty title and one that fits no prompt, and a model whose last layers
        cannot run by themselves.

    Guarantee
    ---------
    The last layers of these states are the hidden states of the whole model up to rounding; the first title is tried.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        titles: Sequence[str],
        *,
        layers: int = 2,
        prompt_titles: int = 10,
        prompt_tokens: int = 64,
        folder: str | Path | None = None,
    ) -> None:
        refuse_mismatch(tokenizer, model)
        decoder = model.base_model
        depth = len(getattr(decoder, "layers", ()))
        if not 1 <= layers < depth:
            got = f"layers = {layers} of a model with {depth} decoder layers"
            raise InputError(got, f"1 to {depth - 1}", "lower it (--set kept_layers=1), or take a Llama-like model")
        context = getattr(model.config, "max_position_embeddings", None) or prompt_tokens
        self._begin = prefix_ids(tokenizer, _BEGIN)
        after = prefix_ids(tokenizer, _AFTER_TITLE)[-1:]
        limit = min(prompt_tokens, context) - len(self._begin) - 1
        if limit < 1:
            got = f"prompt_tokens = {prompt_tokens} for a model of {context}"
            raise InputError(got, f"at least {len(self._begin) + 2}", "raise it (--set prompt_tokens=64)")
        self.n_items, self.prompt_titles, self.layers = len(titles), prompt_titles, layers
        self.width = int(model.config.hidden_size)
        self._title = [[*ids, *after] for ids in title_ids(tokenizer, titles, limit)]
        self._limit, self.model, self._decoder = limit + 1, model, decoder
        self.prompt_tokens, self.end = prompt_tokens, tokenizer.eos_token_id
        self._folder = None if folder is None else Path(folder)
        self._key = model_key(model) if folder is not None else ""
        self._states: dict[Ids, Tensor] = {}
        self._try()

    def prompt(self, items: Sequence[int]) -> Ids:
        """Return the tokens that name items, the newest last, -1 left out; of older ones as many as fit."""
        kept = list[int]()
        for item in reversed([item for item in items if item >= 0][-self.prompt_titles :]):
            if len(kept) + len(self._title[item]) > self._limit:
                break
            kept = self._title[item] + kept
        return (*self._begin, *kept)

    def record(self, history: Sequence[int], target: int | None) -> Encoded:
        """Return the tokens of a prompt, and those of a title with its end after it; any title where target is -1."""
        ids = self.prompt(history)
        title = [] if target is None else [*self._title[target][:-1], self.end]
        return Encoded((*ids, *title), len(ids) if title else 1)

    def prepare(self, history: Tensor, advance: Callable[[int], Any] | None = None) -> None:
        """Compute the states of histories, or read them from the folder.

        Parameters
        ----------
        history : Tensor of int64, shape (B, T)
            -1 at the left.
        advance : callable of int, optional
            Gets the number of prompts as they are computed.
        """
        missing = self._missing(self._prompts(history))
        if not missing:
            return
        lengths = [len(ids) for ids in missing]
        found = self._cached("states", missing, lambda: torch.cat(self._below(missing, advance)), sum(lengths))
        self._states |= zip(missing, torch.split(found, lengths), strict=True)

    def batch(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """Return padded states of histories, (B, T, d), and the place of the end of each, (B,)."""
        prompts = self._prompts(history)
        if missing := self._missing(prompts):
            self._states |= zip(missing, self._below(missing, None), strict=True)
        states = [self._states[ids] for ids in prompts]
        return pad_sequence(states, batch_first=True), torch.tensor([len(one) - 1 for one in states])

    def title_vectors(self) -> Tensor:
        """Return t of every item, float32 of shape (I, d); of length 1, but 0 where all titles are one."""
        titles = [(*self._begin, *ids[:-1]) for ids in self._title]
        unique = [*dict.fromkeys(titles)]
        mean = self._cached("titles", unique, lambda: self._means(unique), len(unique))
        place = {ids: row for row, ids in enumerate(unique)}
        vectors = mean[[place[ids] for ids in titles]]
        return torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)

    def last_layers(self) -> Any:
        """Return a copy of the last layers with the norm, called with ``inputs_embeds=states``."""
        # deepcopy takes what is noted as copied already: neither the table of tokens nor the layers below are copied
        last = nn.ModuleList(copy.deepcopy(one) for one in self._decoder.layers[-self.layers :])
        noted = {id(self._decoder.layers): last, id(self._decoder.get_input_embeddings()): nn.Identity()}
        return copy.deepcopy(self._decoder, noted).eval()

    def _prompts(self, history: Tensor) -> list[Ids]:
        return [*map(self.prompt, history.tolist())]

    def _missing(self, prompts: Sequence[Ids]) -> list[Ids]:
        return [ids for ids in dict.fromkeys(prompts) if ids not in self._states]

    def _cached(self, name: str, prompts: Sequence[Ids], make: Callable[[], Tensor], rows: int) -> Tensor:
        key = hashlib.sha256(json.dumps([self._key, self.layers, name, prompts]).encode()).hexdigest()
        found = cached_tensors(self._folder, name, key, lambda: {name: make()})[name]
        return found if found.shape == (rows, self.width) else make()

    def _passes(self, prompts: Sequence[Ids]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield rows of prompts of similar length, and their tokens, padded at the right."""
        records = [Encoded(ids, 1) for ids in prompts]
        for rows in length_batches(records, _ROWS):
            yield rows, collate([records[row] for row in rows], 0)["input_ids"]

    def _below(self, prompts: Sequence[Ids], advance: Callable[[int], Any] | None) -> list[Tensor]:
        """Return what enters the first of the last layers, shape (T, d) for each prompt."""

        def stop(_layer: Any, args: tuple[Tensor, ...]) -> None:
            raise _Reached(args[0])

        found = dict[int, Tensor]()
        entry = self._decoder.layers[-self.layers]
        with quiet(self.model), entry.register_forward_pre_hook(stop):
            for rows, ids in self._passes(prompts):
                try:
                    self._decoder(input_ids=ids, use_cache=False)
                except _Reached as reached:
                    for row, states in zip(rows, reached.args[0], strict=True):
                        found[row] = states[: len(prompts[row])].clone()
                if advance is not None:
                    advance(len(rows))
        return [found[row] for row in range(len(prompts))]

    def _means(self, prompts: Sequence[Ids]) -> Tensor:
        """Return the mean hidden state of each title, shape (n, d)."""
        found, first = torch.empty(len(prompts), self.width), len(self._begin)
        with quiet(self.model):
            for rows, ids in self._passes(prompts):
                states = self._decoder(input_ids=ids, use_cache=False).last_hidden_state
                for row, own in zip(rows, states, strict=True):
                    found[row] = own[first : len(prompts[row])].mean(0)
        return found

    def _try(self) -> None:
        ids = self.prompt([0])
        with quiet(self.model):
            whole = self._decoder(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
            parts = self.last_layers()(inputs_embeds=self._below([ids], None)[0][None], use_cache=False)
        if not torch.allclose(parts.last_hidden_state, whole, rtol=1e-3, atol=1e-3 * float(whole.abs().mean())):
            raise InputError(
                f"a model of type {self.model.config.model_type}, whose last layers do not run by themselves",
                "a model in float32 whose layers are alike, such as Llama or SmolLM2",
                "take another model",
            )


class _Dropout(nn.Module):
    """The dropout of the present call, for all adapters at once."""

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise InputError(f"dropout = {share}", "a number from 0 to below 1", "use for example 0.2")
        self.share = share
        self.begin(None)

    def begin(self, masks: int | None) -> None:
        """Begin a call with masks of a seed, or with none."""
        generator = None if masks is None or not self.share else torch.Generator().manual_seed(masks)
        self._draw = SeededDropout(self.share, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self._draw(x)

    def add_adapters(self, model: Any, rank: int, generator: torch.Generator, layers: list[int] | None = None) -> None:
        """Put adapters on queries and values of some layers, by default of all."""
        if rank < 1:
            raise InputError(f"rank = {rank}", "at least 1", "use for example 8")
        names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        if not {"q_proj", "v_proj"} <= names:
            got = "a model without q_proj and v_proj"
            raise InputError(got, "queries and values as layers of their own, as in Llama", "take another model")
        try:
            from peft import LoraConfig
        except ImportError:
            got = "a language model as recommender without the package peft"
            raise InputError(got, "the extra llm", "pip install 'upright[llm]'") from None
        seed, where = int(torch.randint(2**62, (1,), generator=generator)), ["q_proj", "v_proj"]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=where, layers_to_transform=layers)
        adapted(model, config, seed=seed, checkpointing=False)
        for module in model.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout = nn.ModuleDict(dict.fromkeys(module.lora_dropout, self))


def _last_targets(kept: KeptStates, history: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return which rows have a target, (B,), and the targets of those, after refusing what does not fit."""
    refuse_histories(history, target, kept.n_items, kept.prompt_titles)
    if bool((target[:, :-1] >= 0).any()):
        got = "a target before the last place of a history"
        raise InputError(got, "one target a history: each costs a prompt", "cut histories to end before a target")
    there = target[:, -1] >= 0
    return there, target[there, -1]


class ItemHead(nn.Module):
    """Scores of all items by a language model, the last layers of which are trained; see the module for the formula.

    Parameters and state dict are what is trained: adapters, W and b.

    Parameters
    ----------
    kept : KeptStates
        Shared by all heads of one model.
    rank : int
        r, at least 1.
    dropout : float
        In [0, 1), before each adapter and before W.
    generator : torch.Generator
        Source of the initial values, on the CPU; the global one stays as it was.

    Raises
    ------
    InputError
        For a rank or dropout out of range, a model without ``q_proj`` and ``v_proj``, and without the package peft.
    """

    title: Tensor

    def __init__(self, kept: KeptStates, *, rank: int = 8, dropout: float = 0.2, generator: torch.Generator) -> None:
        super().__init__()
        last, self.kept, self._masks = kept.last_layers(), kept, _Dropout(dropout)
        self._masks.add_adapters(last, rank, generator)
        self._last = (last,)  # a tuple: its frozen weights belong to the model, not to this module
        self.adapter = nn.ParameterList(p for p in last.parameters() if p.requires_grad)
        self.project = nn.Parameter(torch.randn(kept.width, kept.width, generator=generator) * kept.width**-0.5)
        self.bias = nn.Parameter(torch.zeros(kept.n_items))
        self.register_buffer("title", kept.title_vectors(), persistent=False)

    def hidden(self, history: Tensor) -> Tensor:
        """Return h of each history, shape (B, d)."""
        states, end = self.kept.batch(history)
        every: Tensor = self._last[0](inputs_embeds=states, use_cache=False).last_hidden_state
        return every[torch.arange(len(end)), end]

    def _scores(self, history: Tensor, masks: int | None) -> Tensor:
        self._masks.begin(masks)
        h = self._masks(self.hidden(history))
        scores: Tensor = (h @ self.project.T) @ self.title.T / math.sqrt(self.kept.width) + self.bias
        return scores

    def target_losses(
        self, history: Tensor, target: Tensor, *, masks: int, offset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``-log softmax(score + offset)_target`` of every history that has a target at its last place, shape (N,).

        Arguments, results, errors and guarantee are those of `SASRec.target_losses`.

        Raises
        ------
        InputError
            For a target before the last place, too.

        Guarantee
        ---------
        Rows without a target keep their part of the masks: leaving out targets changes no other loss.
        """
        there, item = _last_targets(self.kept, history, target)
        scores = self._scores(history, masks if self.training else None)[there]
        return cross_entropy(scores if offset is None else scores + offset, item, reduction="none"), item

    def score_all(self, history: Tensor) -> Tensor:
        """Score every item as the next one, shape (B, I); as `SASRec.score_all`."""
        refuse_histories(history, None, self.kept.n_items, self.kept.prompt_titles)
        return torch.cat([self._scores(rows, None) for rows in torch.split(history, _ROWS)])


class TitleHead(nn.Module):
    """Scores of items by the log-probability of their titles; lists are the best beams among all titles.

    Parameters and state dict are the adapters of the last layers.

    Parameters
    ----------
    kept : KeptStates
        Of which the model and the prompts are used, not the states. The model's weights are frozen.
    trie : TitleTrie
        Of the same titles.
    beams : int
        Titles that are found for a history.
    rank, dropout, generator
        As for `ItemHead`; dropout before each adapter.
    """

    def __init__(
        self,
        kept: KeptStates,
        trie: TitleTrie,
        *,
        beams: int = 20,
        rank: int = 8,
        dropout: float = 0.2,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.kept, self.trie, self.beams, self._masks = kept, trie, min(beams, trie.n_titles), _Dropout(dropout)
        # weights are noted as copied already: all heads of one model share them
        model = copy.deepcopy(kept.model, {id(weight): weight for weight in kept.model.parameters()})
        depth = len(model.base_model.layers)
        self._masks.add_adapters(model, rank, generator, [*range(depth - kept.layers, depth)])
        self._model = (model,)
        self.adapter = nn.ParameterList(p for p in model.parameters() if p.requires_grad)

    def target_losses(
        self, history: Tensor, target: Tensor, *, masks: int, offset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``-(1 / n) log p(title)`` of the target, its end among the n tokens; see `ItemHead.target_losses`.

        Raises
        ------
        InputError
            As `ItemHead.target_losses`, and for an offset, since there is no softmax over items to add it to.
        """
        there, item = _last_targets(self.kept, history, target)
        if offset is not None:
            raise InputError("logit adjustment of titles", "head = 'items'", "leave that arm out (--arms none,eisam)")
        # rows without a target and padding to one width, so that leaving out targets changes no mask
        records = [self.kept.record(*pair) for pair in zip(history.tolist(), target[:, -1].tolist(), strict=True)]
        batch = collate(records, 0, width=self.kept.prompt_tokens + self.trie.longest)
        labels = batch.pop("labels")
        self._masks.begin(masks if self.training else None)
        means = sample_means(*token_log_probs(self._model[0](**batch, use_cache=False).logits, labels))
        return -means[there], item

    def score_all(self, history: Tensor) -> Tensor:
        """Score the items of the best beams by the log-probability of their titles, shape (B, I).

        Items that share a title have one score. All that no beam found share a score below the others.
        """
        refuse_histories(history, None, self.kept.n_items, self.kept.prompt_titles)
        self._masks.begin(None)
        scores = torch.empty(len(history), self.kept.n_items)
        for rows in torch.split(torch.arange(len(history)), _ROWS):
            prompts = [self.kept.record(one, None) for one in history[rows].tolist()]
            batch = collate(prompts, 0, side="left")
            width = batch["input_ids"].shape[1]
            found = self._model[0].generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                prefix_allowed_tokens_fn=self.trie.allowed(width),
                max_new_tokens=self.trie.longest,
                num_beams=self.beams,
                num_return_sequences=self.beams,
                do_sample=False,
                length_penalty=0.0,
                early_stopping=False,
                pad_token_id=self.kept.end,
                return_dict_in_generate=True,
                output_scores=True,
            )
            value = found.sequences_scores.view(len(rows), -1)
            scores[rows] = value.min(dim=1, keepdim=True).values - 1
            for n, ids in enumerate(found.sequences[:, width:]):
                row, beam = divmod(n, self.beams)
                scores[rows[row], list(self.trie.items(ids))] = value[row, beam]
        return scores
