r"""Asking a model: losses of answers, what it writes by itself, and the scores per record that follow.

    cbar_i = -(1 / n_i) sum_t log p(y_it | prompt_i, y_i,<t)

Conventions
-----------
*Tokens.* ``y_i`` are the tokens of the answer and the end of sequence. Every one of them counts, in the loss, in exact
memorisation, in extraction strength and in the membership scores: a model that knows the words of an answer but goes on
after them has an extraction strength of 0. Prompts are never scored.

*Precision.* The model runs in its own type; log-probabilities are taken from its logits in float64.

*Batches.* Records are batched by length and returned in the order in which they came. Padding is masked and positions
count from the first real token, so the size of a batch changes results by rounding alone.

*The model.* It is read in evaluation mode, without gradients, and left as it was: the mode of every module, gradients
and weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upright.contract import InputError
from upright.data.forget import Record
from upright.language import encoding
from upright.language.encoding import Encoded, Template, collate, encode, length_batches, prompt_ids
from upright.language.logprobs import TokenStatistics, sample_means, token_log_probs, token_statistics
from upright.metrics import forgetting, membership

__all__ = ["Reading", "Side", "Speaker", "evaluating", "score_records", "utility", "utility_parts"]

Array = NDArray[np.float64]
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
    """

    log_probs: Array
    best: NDArray[np.bool_]
    mean: Array
    std: Array
    mask: NDArray[np.bool_]

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


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into the mode that it had."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


class Speaker:
    """A causal language model with its tokenizer, ready to be asked.

    Parameters
    ----------
    model : PreTrainedModel
        Or one with an adapter of peft.
    tokenizer : PreTrainedTokenizerBase
    template : {"auto", "chat", "plain"}
        As for `upright.language.encoding.encode`.
    batch_size : int
        Records at once. Changes time and memory, not results.

    Raises
    ------
    InputError
        When the tokenizer does not fit the model, or an argument is outside its range.
    """

    def __init__(self, model: Any, tokenizer: Any, *, template: Template = "auto", batch_size: int = 16) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size = {batch_size}", "an integer of at least 1", "raise it")
        encoding.refuse_mismatch(tokenizer, model)
        encoding.template_of(tokenizer, template)
        self.model, self.tokenizer, self.template, self.batch_size = model, tokenizer, template, batch_size
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._takes = frozenset(inspect.signature(inner.forward).parameters)
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad = int(next(one for one in pads if one is not None))

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
        self, records: Sequence[Record], *, answers: Sequence[str | None] | None = None,
        prompts: Sequence[str | None] | None = None,
    ) -> list[Encoded]:  # fmt: skip
        """Encode records as `read` does."""
        if not records:
            raise InputError("no records", "one record at least", "check the file")
        texts = [_aligned(len(records), name, given) for name, given in (("answers", answers), ("prompts", prompts))]
        return [
            encode(self.tokenizer, record, answer=answer, prompt=prompt, template=self.template, context=self.context)
            for record, answer, prompt in zip(records, *texts, strict=True)
        ]

    def read(
        self, records: Sequence[Record], *, answers: Sequence[str | None] | None = None,
        prompts: Sequence[str | None] | None = None,
    ) -> Reading:  # fmt: skip
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
        shape = (len(encoded), max(one.answer_length for one in encoded))
        kinds = {name: np.bool_ if name in ("best", "mask") else np.float64 for name in TokenStatistics._fields}
        tables: dict[str, NDArray[Any]] = {name: np.zeros(shape, dtype=kind) for name, kind in kinds.items()}
        with torch.no_grad(), evaluating(self.model):
            for rows in length_batches(encoded, self.batch_size):
                found, offset = self._statistics([encoded[i] for i in rows], [records[i] for i in rows])
                for name, values in found._asdict().items():
                    block = values.cpu().numpy()
                    for row, i in zip(block, rows, strict=True):
                        one = encoded[i]
                        tables[name][i, : one.answer_length] = row[one.start - offset : len(one.ids) - offset]
        return Reading(**tables)

    def losses(self, records: Sequence[Record], *, answers: Sequence[str | None] | None = None) -> Array:
        """``cbar`` of each answer and nothing else, shape (n,): `Reading.mean_nll` without the vocabulary's moments."""
        encoded = self.encode(records, answers=answers)
        out = np.empty(len(encoded))
        with torch.no_grad(), evaluating(self.model):
            for rows in length_batches(encoded, self.batch_size):
                batch = [encoded[i] for i in rows]
                logits, labels = self._logits(collate(batch, self.pad), min(one.start for one in batch))
                try:
                    means = sample_means(*token_log_probs(logits, labels, dtype=torch.float64))
                except InputError as error:
                    raise _named(error, logits, labels, [records[i] for i in rows]) from None
                out[rows] = np.abs(means.cpu().numpy())
        return out

    def _inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move to the device of the embeddings what the model takes."""
        device = self.model.get_input_embeddings().weight.device
        names = ("input_ids", "attention_mask", "position_ids")
        return {name: batch[name].to(device) for name in names if name in self._takes or name == "input_ids"}

    def _logits(self, batch: Mapping[str, Tensor], first: int) -> tuple[Tensor, Tensor]:
        """Return logits and labels from place ``first - 1`` on: no vocabulary row is made of a prompt."""
        labels = batch["labels"]
        keep = labels.shape[1] - first + 1
        short = {"logits_to_keep": keep} if "logits_to_keep" in self._takes else {}
        logits = self.model(**self._inputs(batch), use_cache=False, **short).logits[:, -keep:]
        return logits, labels[:, -keep:].to(logits.device)

    def _statistics(self, batch: Sequence[Encoded], records: Sequence[Record]) -> tuple[TokenStatistics, int]:
        """Statistics of one batch, and the place at which their first column stands."""
        first = min(one.start for one in batch)
        logits, labels = self._logits(collate(batch, self.pad), first)
        try:
            return token_statistics(logits, labels, dtype=torch.float64), first - 1
        except InputError as error:
            raise _named(error, logits, labels, records) from None

    def write(
        self, records: Sequence[Record], *, max_new_tokens: int | None = None,
        prompts: Sequence[str | None] | None = None,
    ) -> list[str]:  # fmt: skip
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
        if not records:
            raise InputError("no records", "one record at least", "check the file")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise InputError(f"max_new_tokens = {max_new_tokens}", "an integer of at least 1", "raise it")
        asked, limits = [], []
        for record, prompt in zip(records, _aligned(len(records), "prompts", prompts), strict=True):
            ids = prompt_ids(self.tokenizer, record, template=self.template, prompt=prompt)
            room = len(ids) + 1 if self.context is None else self.context - len(ids)
            if room < 1:
                raise InputError(
                    f"record {record.id} with a prompt of {len(ids)} tokens", f"fewer than {self.context}, the context",
                    "shorten the prompt, or use a model with a longer context",
                )  # fmt: skip
            own = self.tokenizer(record.answer.strip(), add_special_tokens=False)["input_ids"]
            limit = len(own) + _MORE if max_new_tokens is None else max_new_tokens
            limits.append(limit if self.context is None else min(limit, room))
            asked.append(Encoded(tuple(ids), len(ids)))
        out = [""] * len(records)
        with torch.no_grad(), evaluating(self.model):
            for rows in length_batches(asked, self.batch_size):
                batch = collate([asked[i] for i in rows], self.pad, side="left")
                written = self._greedy(batch, [limits[i] for i in rows], [records[i].id for i in rows])
                for i, tokens in zip(rows, written, strict=True):
                    out[i] = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return out

    def _greedy(self, batch: Mapping[str, Tensor], limits: Sequence[int], names: Sequence[str]) -> list[list[int]]:
        """Continue each row by its likeliest tokens; returns them without the one that ends it."""
        inputs = self._inputs(batch)
        attention, positions = inputs["attention_mask"], batch["position_ids"][:, -1:].to(inputs["input_ids"].device)
        short = {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}
        cache: Any = None
        written: list[list[int]] = [[] for _ in names]
        alive = list(range(len(names)))  # the record of each row still in the batch
        stops = self.stops
        done: set[int] = set()
        while True:
            result = self.model(**inputs, past_key_values=cache, use_cache=True, **short)
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
            cache = result.past_key_values
            going = [k for k, row in enumerate(alive) if row not in done]
            if 2 * len(going) <= len(alive) and hasattr(cache, "batch_select_indices"):
                kept = torch.tensor(going, device=token.device)
                cache.batch_select_indices(kept)
                alive, token = [alive[k] for k in going], token[kept]
                attention, positions = attention[kept], positions[kept]
            attention = torch.cat([attention, attention.new_ones(len(alive), 1)], dim=1)
            positions = positions + 1
            step = {"input_ids": token[:, None], "attention_mask": attention, "position_ids": positions}
            inputs = self._inputs(step)


def _aligned(n: int, name: str, texts: Sequence[str | None] | None) -> Sequence[str | None]:
    """Return n texts, None where the record's own is meant."""
    if texts is None:
        return [None] * n
    if isinstance(texts, str) or len(texts) != n:
        got = "one text" if isinstance(texts, str) else f"{len(texts)} {name}"
        raise InputError(f"{got} for {n} records", f"a sequence of {n} {name}", "pass one a record")
    return texts


def _named(error: InputError, logits: Tensor, labels: Tensor, records: Sequence[Record]) -> InputError:
    """Say which record an error of a batch belongs to."""
    for row, record in enumerate(records):
        try:
            token_statistics(logits[row : row + 1], labels[row : row + 1], dtype=torch.float64)
        except InputError as own:
            return InputError(f"record {record.id}: {own.got}", own.accepted, own.todo)
    return error


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
    speaker: Speaker, records: Sequence[Record], *, side: Side, reading: Reading | None = None,
    reference: Reading | None = None, rouge: bool = True, truth: bool = True,
) -> dict[str, Array]:  # fmt: skip
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
    out: dict[str, Array] = {}
    if side != "holdout":
        out[f"{side}_probability"] = forgetting.probability(own.mean_nll)
        if rouge:
            out[f"{side}_rouge_l"] = forgetting.rouge_l_recall([r.answer for r in records], speaker.write(records))
        if truth:
            true, false = _false_answers(speaker, records)
            out[f"{side}_truth_ratio"] = forgetting.truth_ratio(true, false[:, None], side)
            out[f"{side}_truth_probability"] = forgetting.truth_ratio(true, false[:, None], "probability")
    if side == "forget":
        out["exact_memorisation"] = forgetting.exact_memorisation(own.best, own.mask)
        out["extraction_strength"] = forgetting.extraction_strength(own.best, own.mask)
    if side != "retain":
        out["mia_loss"] = membership.loss_score(own.mean_nll)
        out["mia_zlib"] = membership.zlib_score(own.mean_nll, [r.answer.strip() for r in records])
        out["mia_min_k"] = membership.min_k(own.log_probs, own.mask)
        out["mia_min_k_plus_plus"] = membership.min_k_plus_plus(own.log_probs, own.mean, own.std, own.mask)
        if reference is not None:
            out["mia_reference"] = membership.reference_score(own.mean_nll, reference.mean_nll)
    return out


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
