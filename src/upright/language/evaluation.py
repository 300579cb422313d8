r"""Asking a model: losses of answers, what it writes by itself, and the scores per record that follow.

    cbar_i = -(1 / n_i) sum_t log p(y_it | prompt_i, y_i,<t)

Conventions
-----------
*Forms.* A record is asked in the form in which it was given (`upright.language.encoding`): a model that holds a running
text may answer nothing to a question, so what it knows is the most that any form brings out.

*Tokens.* ``y_i`` are the tokens of the answer and, of an answer in the plain or chat form, the end of sequence. It
counts in the loss and in what is made of the loss, and in nothing else: a text that goes on is known by heart as well.
Prompts are never scored.

*Precision.* The model runs in its own type; log-probabilities are taken from its logits in float64.

*Batches.* Records are batched by length and returned in the order in which they came. Padding is masked and positions
count from the first real token, so the size of a batch changes results by rounding alone.

*The model.* It is read in evaluation mode, without gradients, and left as it was: the mode of every module, gradients
and weights.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upright.contract import InputError
from upright.data.forget import Record
from upright.language import encoding
from upright.language.encoding import Encoded, Form, Template, collate, encode_all, form_of, forms_of, length_batches
from upright.language.reader import Array, evaluating, read_answers, refuse_encoder
from upright.metrics import forgetting, membership

__all__ = ["Reading", "Side", "Speaker", "evaluating", "score_records", "utility", "utility_parts"]

Side = Literal["forget", "retain", "holdout"]
_MORE = 8  # tokens that an output may be longer than the answer


@dataclass(frozen=True)
class Reading:
    """What a model makes of n answers; tokens stand at the left, T is the longest answer.

    Parameters
    ----------
    log_probs : ndarray of float64, shape (n, T)
        ``log p(y_t)``; 0 outside the mask, as in the arrays below.
    best : ndarray of bool, shape (n, T)
        Whether greedy decoding picks the token.
    mean, std : ndarray of float64, shape (n, T)
        Of log p over the vocabulary, weighted by p.
    mask : ndarray of bool, shape (n, T)
        The answer tokens, end of sequence included.
    words : ndarray of bool, shape (n, T)
        Without it.
    """

    log_probs: Array
    best: NDArray[np.bool_]
    mean: Array
    std: Array
    mask: NDArray[np.bool_]
    words: NDArray[np.bool_]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """``n_i``, at least 1, shape (n,)."""
        return np.asarray(self.mask.sum(axis=1), dtype=np.int64)

    @property
    def sums(self) -> Array:
        """``log p(y_i) = -n_i cbar_i``, at most 0, shape (n,)."""
        return np.asarray(self.log_probs.sum(axis=1))

    @property
    def mean_nll(self) -> Array:
        """``cbar_i``, at least 0, shape (n,)."""
        return np.abs(self.sums) / self.tokens  # abs: 0, not -0, where the answer is certain


class Speaker:
    """A causal language model with its tokenizer, ready to be asked.

    Parameters
    ----------
    model : PreTrainedModel
        Or one with an adapter of peft.
    tokenizer : PreTrainedTokenizerBase
    template : {"auto", "raw", "plain", "chat"}
        As for `upright.language.encoding.form_of`.
    batch_size : int
        Records at once. Changes time and memory, not results.

    Raises
    ------
    InputError
        When the model is no causal language model, the tokenizer does not fit it, or an argument is outside its range.
    """

    def __init__(self, model: Any, tokenizer: Any, *, template: Template = "auto", batch_size: int = 16) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size = {batch_size}", "an integer of at least 1", "raise it")
        encoding.refuse_mismatch(tokenizer, model)
        refuse_encoder(model)
        form_of(tokenizer, Record("a question", "an answer"), template)
        self.model, self.tokenizer, self.template, self.batch_size = model, tokenizer, template, batch_size
        self.pad = encoding.pad_of(tokenizer)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._takes = frozenset(inspect.signature(inner.forward).parameters)
        # A state that has read padding is another one, so such models read each prompt again, by itself.
        self._caches = "past_key_values" in self._takes and not getattr(inner, "_is_stateful", False)

    def asking(self, form: Form) -> Speaker:
        """Return a speaker of the same model that asks in another form."""
        other = copy.copy(self)
        other.template = form
        return other

    @property
    def device(self) -> torch.device:
        """Where the embeddings of the model are."""
        found: torch.device = self.model.get_input_embeddings().weight.device
        return found

    @property
    def context(self) -> int | None:
        """Most tokens that the model takes; None where its configuration does not say."""
        config = self.model.config
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        found = getattr(config, "max_position_embeddings", None)
        return None if found is None else int(found)

    @property
    def stops(self) -> frozenset[int]:
        """Tokens that end an output: of the tokenizer, and of the model's generation settings."""
        own = self.tokenizer.eos_token_id
        more = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ids = [own, *(more if isinstance(more, list | tuple) else [more])]
        return frozenset(int(one) for one in ids if one is not None)

    def encode(
        self,
        records: Sequence[Record],
        *,
        answers: Sequence[str | None] | None = None,
        prompts: Sequence[str | None] | None = None,
    ) -> list[Encoded]:
        """Encode records as `read` does."""
        words: Any = {"answers": answers, "prompts": prompts}
        return encode_all(self.tokenizer, records, **words, template=self.template, context=self.context)

    def read(
        self,
        records: Sequence[Record],
        *,
        answers: Sequence[str | None] | None = None,
        prompts: Sequence[str | None] | None = None,
    ) -> Reading:
        """Read the log-probabilities of answers under teacher forcing.

        Parameters
        ----------
        records : sequence of Record, length n
        answers, prompts : sequence of str, length n, optional
            Other words in the place of the records' own; None leaves that record as it is.

        Returns
        -------
        Reading
            In the order of `records`.

        Raises
        ------
        InputError
            When lengths differ, a record is longer than the context, or logits are not finite: the record is named.
        """
        encoded = self.encode(records, answers=answers, prompts=prompts)
        values = self._read(records, encoded, moments=True)
        tokens = np.array([one.answer_length for one in encoded])
        table = np.zeros((len(encoded), tokens.max(), 4))
        for row, one in zip(table, values, strict=True):
            row[: len(one)] = one
        place, ends = np.arange(tokens.max()), np.array([one.closed for one in encoded])
        masks = (place < count[:, None] for count in (tokens, tokens - ends))
        return Reading(table[..., 0], table[..., 1] > 0.5, table[..., 2], table[..., 3], *masks)

    def losses(self, records: Sequence[Record], *, answers: Sequence[str | None] | None = None) -> Array:
        """``cbar`` of each answer and nothing else, shape (n,): `Reading.mean_nll` without the vocabulary's moments."""
        values = self._read(records, self.encode(records, answers=answers), moments=False)
        return np.array([abs(one.mean()) for one in values])

    def _read(self, records: Sequence[Record], encoded: Sequence[Encoded], *, moments: bool) -> list[Array]:
        names = [f"record {record.id}" for record in records]
        size = self.batch_size
        return read_answers(self.model, encoded, pad=self.pad, batch_size=size, names=names, moments=moments)

    def write(
        self,
        records: Sequence[Record],
        *,
        max_new_tokens: int | None = None,
        prompts: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Write an answer to each prompt, always the likeliest token, until the end of sequence.

        Plain greedy decoding: penalties or temperatures in the model's generation settings do not apply. Of tied logits
        the smallest index wins. Two tokens that differ by less than the rounding of the model's type may change places
        with the size of the batch.

        Parameters
        ----------
        records : sequence of Record, length n
        max_new_tokens : int, optional
            Most tokens of an output. By default the tokens of the record's own answer and 8 more, so an output does
            not depend on what else is in the batch. Never more than the context has room for.
        prompts : sequence of str, length n, optional
            Other words for the prompts; None leaves that record's own.

        Returns
        -------
        list of str
            Without special tokens, white space at both ends cut off.

        Raises
        ------
        InputError
            When a prompt fills the context, or logits are NaN: the record is named.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise InputError(f"max_new_tokens = {max_new_tokens}", "an integer of at least 1", "raise it")
        limits, same = list[int](), dict[tuple[int, ...], list[int]]()  # records without a prompt are all asked alike
        whole = encode_all(self.tokenizer, records, prompts=prompts, template=self.template)
        for i, (record, one) in enumerate(zip(records, whole, strict=True)):
            room = one.start + 1 if self.context is None else self.context - one.start
            if room < 1:
                raise InputError(
                    f"record {record.id} with a prompt of {one.start} tokens",
                    f"fewer than {self.context}, the context",
                    "shorten the prompt, or use a model with a longer context",
                )
            own = self.tokenizer(record.answer.strip(), add_special_tokens=False)["input_ids"]
            limit = len(own) + _MORE if max_new_tokens is None else max_new_tokens
            limits.append(limit if self.context is None else min(limit, room))
            same.setdefault(tuple(one.ids[: one.start]), []).append(i)
        out, asked, alike = [""] * len(records), [Encoded(ids, len(ids)) for ids in same], list(same.values())
        with torch.no_grad(), evaluating(self.model):
            for rows in length_batches(asked, self.batch_size if self._caches else 1):
                batch = collate([asked[i] for i in rows], self.pad, side="left")
                most = [max(limits[i] for i in alike[k]) for k in rows]
                written = self._greedy(batch, most, [records[alike[k][0]].id for k in rows])
                for i, tokens in ((i, tokens) for k, tokens in zip(rows, written, strict=True) for i in alike[k]):
                    out[i] = self.tokenizer.decode(tokens[: limits[i]], skip_special_tokens=True).strip()
        return out

    def _inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move to the device of the embeddings what the model takes."""
        names = ("input_ids", "attention_mask", "position_ids")
        return {name: batch[name].to(self.device) for name in names if name in self._takes or name == "input_ids"}

    def _greedy(self, batch: Mapping[str, Tensor], limits: Sequence[int], names: Sequence[str]) -> list[list[int]]:
        """Continue each row by its likeliest tokens; returns them without the one that ends it."""
        ids, attention = (batch[name].to(self.device) for name in ("input_ids", "attention_mask"))
        positions, stops = batch["position_ids"].to(self.device), self.stops
        more: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}
        if "use_cache" in self._takes:
            more["use_cache"] = self._caches
        written: list[list[int]] = [[] for _ in names]
        alive = list(range(len(names)))  # the record of each row still in the batch
        done: set[int] = set()
        while True:
            inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": positions}
            result = self.model(**self._inputs(inputs), **more)
            value, token = result.logits[:, -1].max(dim=1)  # (B,) each
            if bool(value.isnan().any()):
                bad = names[alive[int(value.isnan().nonzero()[0])]]
                raise InputError(f"logits of NaN at record {bad}", "finite logits", "find where the model diverged")
            for row, one in zip(alive, token.tolist(), strict=True):
                if row in done:
                    continue
                if one not in stops:
                    written[row].append(one)
                if one in stops or len(written[row]) >= limits[row]:
                    done.add(row)
            if len(done) == len(names):
                return written
            going = [k for k, row in enumerate(alive) if row not in done]
            if self._caches:
                cache = more["past_key_values"] = result.past_key_values
                if 2 * len(going) <= len(alive) and hasattr(cache, "batch_select_indices"):
                    kept = torch.tensor(going, device=token.device)
                    cache.batch_select_indices(kept)
                    alive, token = [alive[k] for k in going], token[kept]
                    attention, positions = attention[kept], positions[kept]
            attention = torch.cat([attention, attention.new_ones(len(alive), 1)], dim=1)
            after = positions[:, -1:] + 1
            if self._caches:
                ids, positions = token[:, None], after
            else:
                ids, positions = torch.cat([ids, token[:, None]], dim=1), torch.cat([positions, after], dim=1)


# -- scores per record ----------------------------------------------------------------------------------------------


def _false_answers(speaker: Speaker, records: Sequence[Record]) -> tuple[Array, Array]:
    """Mean loss over the paraphrases and over the false answers of each record, shape (n,); NaN where it has none."""
    flat = [
        (i, side, text)
        for i, record in enumerate(records)
        if record.paraphrases and record.perturbed
        for side, texts in enumerate((record.paraphrases, record.perturbed))
        for text in texts
    ]
    out = np.full((2, len(records)), np.nan)
    if flat:
        nll = speaker.losses([records[i] for i, _, _ in flat], answers=[text for *_, text in flat])
        at = np.array([side * len(records) + i for i, side, _ in flat])
        count = np.bincount(at, minlength=out.size)
        total = np.bincount(at, weights=nll, minlength=out.size)
        out = np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(2, len(records))  # (2, n)
    return out[0], out[1]


def score_records(
    speaker: Speaker,
    records: Sequence[Record],
    *,
    side: Side,
    reading: Reading | None = None,
    reference: Reading | None = None,
    rouge: bool = True,
    truth: bool = True,
    forms: bool = False,
) -> dict[str, Array]:
    """Score records by the names of `METRICS` in `upright.metrics.forgetting` and `membership`, shape (n,) each.

    ===========  ==============================================================================================
    ``forget``   probability, ROUGE-L, truth ratio, share of the true answer, memorisation, membership scores
    ``retain``   probability, ROUGE-L, truth ratio, share of the true answer
    ``holdout``  membership scores
    ===========  ==============================================================================================

    Parameters
    ----------
    speaker : Speaker
    records : sequence of Record, length n
    side : {"forget", "retain", "holdout"}
    reading : Reading, optional
        Of `records` by this speaker, if it is at hand.
    reference : Reading, optional
        Of the same records by a model that never saw them; adds ``mia_reference``.
    rouge : bool
        Whether outputs are written, which takes most of the time and needs the package nltk.
    truth : bool
        Whether paraphrased and false answers are read: with five false answers, six more texts a record.
    forms : bool
        Whether answers are read in every other form in which all records can be asked as well. The names then end in
        the form, as in ``mia_loss_raw``. Outputs, truth ratios and ``mia_reference`` are of the records' own form.

    Returns
    -------
    dict of str to ndarray of float64, shape (n,)
        Truth ratios are NaN for a record without a paraphrase or without false answers; of several paraphrases the mean
        loss enters.

    Raises
    ------
    InputError
        For an unknown side, and a reading or reference that is not of these records.
    """
    if side not in ("forget", "retain", "holdout"):
        raise InputError(f"side = {side!r}", "'forget', 'retain' or 'holdout'", "choose one of them")
    lengths = [one.answer_length for one in speaker.encode(records)]
    for name, one in (("reading", reading), ("reference", reference)):
        if one is not None and one.tokens.tolist() != lengths:
            raise InputError(
                f"a {name} of {len(one.mask)} answers and {int(one.tokens.sum())} tokens for {len(records)} records "
                f"and {sum(lengths)}", "a reading of these records with the same tokenizer", "read them again",
            )  # fmt: skip
    own = speaker.read(records) if reading is None else reading
    out = _held(own, records, side)
    if side != "holdout" and rouge:
        out[f"{side}_rouge_l"] = forgetting.rouge_l_recall([r.answer for r in records], speaker.write(records))
    if side != "holdout" and truth:
        true, false = _false_answers(speaker, records)
        out[f"{side}_truth_ratio"] = forgetting.truth_ratio(true, false[:, None], side)
        out[f"{side}_truth_probability"] = forgetting.truth_ratio(true, false[:, None], "probability")
    if side != "retain" and reference is not None:
        out["mia_reference"] = membership.reference_score(own.mean_nll, reference.mean_nll)
    for form in _other_forms(speaker, records) if forms else ():
        found = _held(speaker.asking(form).read(records), records, side)
        out |= {f"{name}_{form}": values for name, values in found.items()}
    return out


def _held(own: Reading, records: Sequence[Record], side: Side) -> dict[str, Array]:
    """Return the scores that a reading of the answers gives."""
    out = {}
    if side != "holdout":
        out[f"{side}_probability"] = forgetting.probability(own.mean_nll)
    if side == "forget":
        out["exact_memorisation"] = forgetting.exact_memorisation(own.best, own.words)
        out["extraction_strength"] = forgetting.extraction_strength(own.best, own.words)
    if side != "retain":
        out["mia_loss"] = membership.loss_score(own.mean_nll)
        out["mia_zlib"] = membership.zlib_score(own.mean_nll, [r.answer.strip() for r in records])
        out["mia_min_k"] = membership.min_k(own.log_probs, own.words)
        out["mia_min_k_plus_plus"] = membership.min_k_plus_plus(own.log_probs, own.mean, own.std, own.words)
    return out


def _other_forms(speaker: Speaker, records: Sequence[Record]) -> list[Form]:
    """Return the forms in which all records can be asked and some are not."""
    own = {form_of(speaker.tokenizer, record, speaker.template) for record in records}
    common = set.intersection(*(set(forms_of(speaker.tokenizer, record)) for record in records))
    return sorted(common - (own if len(own) == 1 else set()))


def utility_parts(values: Mapping[str, Array]) -> tuple[str, ...]:
    """Return which of the nine parts of TOFU's utility have a defined value, in the order of `forgetting.UTILITY`."""
    return tuple(name for name in forgetting.UTILITY if name in values and forgetting.mean_of(values[name]).n)


def utility(values: Mapping[str, Array]) -> float:
    """``m / sum_j 1 / mean_j`` over the m parts that are present: a harmonic mean of means, in [0, 1].

    Parameters
    ----------
    values : mapping of str to ndarray of shape (n,)
        Of `score_records`. `utility_parts` names what enters: report it beside the number, since with other parts it is
        another metric. TOFU's own has nine.

    Raises
    ------
    InputError
        When no part has a defined value.
    """
    parts = utility_parts(values)
    if not parts:
        got = f"values of {', '.join(sorted(values)) or 'nothing'}"
        raise InputError(got, f"at least one of {', '.join(forgetting.UTILITY)}", "score the retained records")
    return forgetting.model_utility({name: forgetting.mean_of(values[name]).value for name in parts}, parts)
