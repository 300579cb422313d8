"""Readings and outputs against loops without batches, padding or cache; and a model that is left as it was."""

from __future__ import annotations

import copy
import math
import zlib
from dataclasses import replace
from statistics import harmonic_mean

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from upright.contract import InputError
from upright.data.forget import Record, tofu_records
from upright.language import evaluation as ev
from upright.language.encoding import Encoded, collate, encode_all
from upright.metrics import forgetting, membership
from upright.models.tiny import tiny_llama, tiny_tokenizer

transformers = pytest.importorskip("transformers")

RECORDS = tofu_records()[:9]
SHORT = [
    Record("Where does Ada live?", "In Riga, by the sea.", id="ada"),
    Record("What did Bo write?", "A long poem.", id="bo"),
    Record("Who is the father of Cy?", "A baker from Turku called Olli.", id="cy"),
]


@pytest.fixture(scope="module")
def house():
    """A tokenizer, and a model that knows SHORT by heart and has met the others."""
    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in RECORDS + SHORT], vocabulary=400)
    model = tiny_llama(tokenizer, hidden=32, layers=2)
    batches = [collate(encode_all(tokenizer, part), 0) for part in (SHORT, RECORDS)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(120):
        optimizer.zero_grad()
        model(**batches[step % 4 == 3]).loss.backward()
        optimizer.step()
    model.zero_grad()
    return model, tokenizer


@pytest.fixture
def speaker(house):
    return ev.Speaker(*house, batch_size=4)


def tokens_of(tokenizer, record, answer=None, prompt=None):
    """Prompt and answer as tokens, by the format in words."""
    head = f"Question: {prompt or record.prompt}\nAnswer:"
    before = [tokenizer.bos_token_id, *tokenizer(head, add_special_tokens=False)["input_ids"]]
    after = tokenizer(" " + (answer or record.answer), add_special_tokens=False)["input_ids"]
    return before, [*after, tokenizer.eos_token_id]


@torch.no_grad()
def by_hand(model, before, after):
    """Rows of (log p, is the argmax, mean, standard deviation), one token at a time, without padding."""
    logits = model(input_ids=torch.tensor([before + after])).logits[0].double()
    rows = []
    for t, token in enumerate(after):
        log_p = torch.log_softmax(logits[len(before) + t - 1], 0).numpy()
        p = np.exp(log_p)
        mean = float(np.sum(p * log_p))
        rows.append((log_p[token], token == int(log_p.argmax()), mean, math.sqrt(np.sum(p * (log_p - mean) ** 2))))
    return np.array(rows)


def compare(reading, expected):
    """Compare a reading with tables of `by_hand`."""
    for i, rows in enumerate(expected):
        n = len(rows)
        assert reading.mask[i].tolist() == [True] * n + [False] * (reading.mask.shape[1] - n)
        for k, name in enumerate(("log_probs", "best", "mean", "std")):
            values = getattr(reading, name)[i]
            np.testing.assert_allclose(values[:n], rows[:, k], atol=2e-4, rtol=1e-4, err_msg=f"{name} of answer {i}")
            assert not values[n:].any()
        assert reading.tokens[i] == n
        assert reading.sums[i] == pytest.approx(rows[:, 0].sum(), abs=2e-3)
        assert reading.mean_nll[i] == pytest.approx(-rows[:, 0].mean(), abs=2e-4)


@torch.no_grad()
def greedy(model, tokenizer, before, limit):
    """Greedy decoding that computes the whole text again for each token."""
    ids = list(before)
    for _ in range(limit):
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    return tokenizer.decode(ids[len(before) :], skip_special_tokens=True).strip()


def limit_of(tokenizer, record):
    return len(tokenizer(record.answer, add_special_tokens=False)["input_ids"]) + 8


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 64])
def test_reading_is_a_loop_over_tokens(house, size):
    # catches a shifted mask, scored prompts or padding, a lost end of sequence, rows in the order of the batches
    model, tokenizer = house
    expected = [by_hand(model, *tokens_of(tokenizer, r)) for r in RECORDS + SHORT]
    reading = ev.Speaker(model, tokenizer, batch_size=size).read(RECORDS + SHORT)
    compare(reading, expected)
    assert reading.log_probs.dtype == reading.mean.dtype == np.float64
    assert len({len(rows) for rows in expected}) > 4  # else nothing would be padded


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_mask_off_by_one_is_seen(house, speaker, monkeypatch, shift):
    # planted: shows that the comparison above can fail
    model, tokenizer = house
    expected = [by_hand(model, *tokens_of(tokenizer, r)) for r in SHORT]
    compare(speaker.read(SHORT), expected)
    right = ev.encode_all

    def wrong(*args, **options):
        return [Encoded(one.ids, one.start + shift, one.closed) for one in right(*args, **options)]

    monkeypatch.setattr(ev, "encode_all", wrong)
    with pytest.raises(AssertionError):
        compare(speaker.read(SHORT), expected)


def test_other_answers_and_prompts(house, speaker):
    # catches an answer that is paired with another record, None that becomes the text "None"
    model, tokenizer = house
    answers = [None, "He never wrote.", "A cook."]
    prompts = ["In which town is Ada at home?", None, "Cy is the child of whom?"]
    expected = [by_hand(model, *tokens_of(tokenizer, r, a, p)) for r, a, p in zip(SHORT, answers, prompts, strict=True)]
    compare(speaker.read(SHORT, answers=answers, prompts=prompts), expected)


def test_reading_follows_the_order_of_records(speaker):
    # catches rows that keep the order of lengths
    order = np.random.default_rng(0).permutation(len(RECORDS))
    one, other = speaker.read(RECORDS), speaker.read([RECORDS[i] for i in order])
    np.testing.assert_allclose(other.mean_nll, one.mean_nll[order], rtol=1e-5)


def test_template_of_a_chat(house):
    # catches a plain prompt sent to a chat model, and earlier messages that get lost
    model, tokenizer = house[0], copy.deepcopy(house[1])
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    record = replace(SHORT[0], before=(("user", "Hello"), ("assistant", "Hi")))
    text = f"[user] Hello\n[assistant] Hi\n[user] {record.prompt}\n[assistant] "
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    after = [*tokenizer(record.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    speaker = ev.Speaker(model, tokenizer)
    compare(speaker.read([record]), [by_hand(model, before, after)])
    assert speaker.write([record]) == [greedy(model, tokenizer, before, limit_of(tokenizer, record))]
    plain = ev.Speaker(model, tokenizer, template="plain").read([SHORT[0]])
    compare(plain, [by_hand(model, *tokens_of(tokenizer, SHORT[0]))])


def test_a_model_without_positions(house):
    # catches an argument that only models with rotary positions take; ALiBi reads places off the attention mask
    tokenizer = house[1]
    config = transformers.BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = transformers.BloomForCausalLM(config).eval()
    speaker = ev.Speaker(model, tokenizer, batch_size=3)
    assert speaker.context is None
    compare(speaker.read(SHORT), [by_hand(model, *tokens_of(tokenizer, r)) for r in SHORT])
    outputs = [greedy(model, tokenizer, tokens_of(tokenizer, r)[0], 5) for r in SHORT]
    assert speaker.write(SHORT, max_new_tokens=5) == outputs


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.21 asks for the old name
def test_a_model_with_an_adapter(house):
    # catches a wrapper whose signature hides what the model takes, and an adapter that is left out
    peft = pytest.importorskip("peft")
    model, tokenizer = copy.deepcopy(house[0]), house[1]
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    speaker = ev.Speaker(wrapped, tokenizer, batch_size=2)
    compare(speaker.read(SHORT), [by_hand(wrapped.eval(), *tokens_of(tokenizer, r)) for r in SHORT])
    assert not np.allclose(speaker.read(SHORT).sums, ev.Speaker(*house).read(SHORT).sums)
    assert speaker.context == 256


def test_log_probabilities_have_more_digits_than_logits(speaker):
    # catches a softmax in float32, whose error adds up over a long answer
    values = speaker.read(RECORDS).log_probs
    values = values[values < 0]
    assert (values.astype(np.float32) != values).mean() > 0.9


def test_no_gradient_and_no_vocabulary_of_the_prompt(house):
    # catches graphs kept in memory, and logits made for prompts alone
    model = copy.deepcopy(house[0])
    seen = []
    speaker = ev.Speaker(model, house[1])
    model.lm_head.register_forward_hook(lambda _, x, y: seen.append((y.requires_grad, y.shape[1])))
    speaker.read([SHORT[0]])
    assert seen == [(False, len(tokens_of(house[1], SHORT[0])[1]) + 1)]
    speaker.write([SHORT[0]])
    assert set(seen[1:]) == {(False, 1)}


def test_a_model_in_bfloat16(house):
    # catches arrays of a type that NumPy lacks, and log-probabilities rounded to 8 bits
    model = copy.deepcopy(house[0]).to(torch.bfloat16)
    reading = ev.Speaker(model, house[1]).read(RECORDS)
    assert reading.log_probs.dtype == np.float64
    coarse = torch.tensor(reading.log_probs[reading.mask])
    assert (coarse.bfloat16().double() != coarse).double().mean() > 0.9
    np.testing.assert_allclose(reading.mean_nll, ev.Speaker(*house).read(RECORDS).mean_nll, rtol=0.05)


# -- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 64])
def test_writing_is_greedy_decoding_without_cache(house, size):
    # catches padding that is attended to, positions that count it, a stale cache, rows mixed up when some are done
    model, tokenizer = house
    expected = [greedy(model, tokenizer, tokens_of(tokenizer, r)[0], limit_of(tokenizer, r)) for r in RECORDS + SHORT]
    assert ev.Speaker(model, tokenizer, batch_size=size).write(RECORDS + SHORT) == expected
    assert len(set(expected)) > 4  # else a constant output would pass


def test_writing_is_generate_of_transformers(house, speaker):
    # catches another order of steps than the usual one
    model, tokenizer = house
    heads = [tokens_of(tokenizer, r)[0] for r in RECORDS]
    batch = collate([Encoded(tuple(h), len(h)) for h in heads], speaker.pad, side="left")
    with torch.no_grad():
        found = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=20, do_sample=False
        )  # fmt: skip
    cut = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in found[:, batch["input_ids"].shape[1] :]]
    assert speaker.write(RECORDS, max_new_tokens=20) == cut


def test_writing_with_other_prompts(house, speaker):
    # catches prompts that are ignored
    model, tokenizer = house
    prompts = [RECORDS[0].prompt, None, RECORDS[1].prompt]
    heads = [tokens_of(tokenizer, r, prompt=p)[0] for r, p in zip(SHORT, prompts, strict=True)]
    expected = [greedy(model, tokenizer, h, 6) for h in heads]
    assert speaker.write(SHORT, prompts=prompts, max_new_tokens=6) == expected


def test_records_that_ask_alike_are_written_once(house, speaker):
    # catches minutes spent on texts without a prompt, and an output cut at the length of another record
    model, tokenizer = house
    head = tokens_of(tokenizer, RECORDS[0])[0]
    same = [replace(RECORDS[0], answer=" ".join(RECORDS[0].answer.split()[:n])) for n in (1, 3)]
    expected = [greedy(model, tokenizer, head, limit_of(tokenizer, one)) for one in (*same, RECORDS[0])]
    rows = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    try:
        assert speaker.write([*same, RECORDS[0]]) == expected
    finally:
        hook.remove()
    assert set(rows) == {1}
    assert expected[0] != expected[2]  # else one length would pass for another


def test_outputs_stop(house):
    # catches an output beyond the context, one that goes on after a stop of the generation settings, and a length
    # that depends on the rest of the batch
    model, tokenizer = copy.deepcopy(house[0]), house[1]
    head, after = tokens_of(tokenizer, SHORT[2])
    model.config.max_position_embeddings = len(head) + 3
    speaker = ev.Speaker(model, tokenizer)
    first = tokenizer.decode(after[:3]).strip()
    assert speaker.write([SHORT[2]]) == [first]
    model.config.max_position_embeddings = 256
    assert speaker.write([SHORT[2]]) == [SHORT[2].answer]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, after[2]]
    assert speaker.write([SHORT[2]]) == [tokenizer.decode(after[:2]).strip()]
    model.config.max_position_embeddings = len(head)
    with pytest.raises(InputError, match=f"record cy with a prompt of {len(head)} tokens"):
        speaker.write([SHORT[2]])


# -- a model left as it was -----------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was(house):
    # catches train(True) for all modules, cleared gradients, and weights that are switched to require a gradient
    model, tokenizer = copy.deepcopy(house[0]), house[1]
    model.train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    model.model.layers[1].mlp.up_proj.weight.grad = torch.ones_like(model.model.layers[1].mlp.up_proj.weight)
    before = [(m.training) for m in model.modules()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    speaker = ev.Speaker(model, tokenizer)
    ev.score_records(speaker, SHORT, side="forget")
    with pytest.raises(InputError):
        speaker.read([replace(SHORT[0], answer="word " * 500)])
    with pytest.raises(RuntimeError, match="stop"), ev.evaluating(model):
        raise RuntimeError("stop")
    assert [m.training for m in model.modules()] == before
    assert len(set(before)) == 2
    assert not model.lm_head.weight.requires_grad
    for name, one in model.named_parameters():
        if name == "model.layers.1.mlp.up_proj.weight":
            assert torch.equal(one.grad, torch.ones_like(one))
        else:
            assert one.grad is None
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_dropout_is_off(house):
    # catches a reading in training mode, which would be random
    model = copy.deepcopy(house[0])
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    reading = ev.Speaker(model, house[1]).read(SHORT)
    np.testing.assert_allclose(reading.log_probs, ev.Speaker(*house).read(SHORT).log_probs, atol=1e-5)


# -- scores ---------------------------------------------------------------------------------------------------------


def test_what_is_known_by_heart(speaker):
    # catches ROUGE against the prompt, an end of sequence in the text, a strength that stops one token short
    assert speaker.write(SHORT) == [r.answer for r in SHORT]
    scores = ev.score_records(speaker, SHORT, side="forget")
    for name in ("forget_rouge_l", "exact_memorisation", "extraction_strength"):
        assert scores[name].tolist() == [1.0] * 3
    assert (scores["forget_probability"] > 0.9).all()


def test_the_end_counts_in_the_loss_alone(house, speaker):
    """An answer that is known by heart and goes on had extraction strength 0, since its end was no argmax."""
    longer = [replace(r, answer=r.answer[: r.answer.index(" ", 5)]) for r in SHORT]  # a part of what is known
    scores = ev.score_records(speaker, longer, side="forget", rouge=False, truth=False)
    for name in ("exact_memorisation", "extraction_strength"):
        assert scores[name].tolist() == [1.0] * 3
    rows = [by_hand(house[0], *tokens_of(house[1], r)) for r in longer]
    np.testing.assert_allclose(scores["mia_loss"], [one[:, 0].mean() for one in rows], rtol=1e-4)
    assert not any(one[-1, 1] for one in rows)


def test_scores_of_the_forget_side_by_hand(house, speaker):
    # catches false answers of another record, an order of paraphrases and false answers that is turned round,
    # arithmetic for geometric means, and a metric under another's name
    model, tokenizer = house
    ragged = [
        replace(RECORDS[0], perturbed=RECORDS[0].perturbed[:2]), SHORT[0], RECORDS[1],
        replace(RECORDS[2], paraphrases=()), replace(RECORDS[3], paraphrases=("A first.", "A second, longer one.")),
        replace(RECORDS[4], perturbed=()),
    ]  # fmt: skip
    reference = ev.Speaker(tiny_llama(tokenizer, hidden=16, layers=1, seed=5), tokenizer).read(ragged)
    scores = ev.score_records(speaker, ragged, side="forget", reference=reference)
    assert set(scores) == {n for n in forgetting.METRICS if not n.startswith("retain")} | set(membership.METRICS)
    nll = lambda record, answer=None: -by_hand(model, *tokens_of(tokenizer, record, answer))[:, 0].mean()  # noqa: E731
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for i, record in enumerate(ragged):
        assert scores["forget_probability"][i] == pytest.approx(math.exp(-nll(record)), rel=1e-3)
        before = tokens_of(tokenizer, record)[0]
        output = greedy(model, tokenizer, before, limit_of(tokenizer, record))
        assert scores["forget_rouge_l"][i] == pytest.approx(scorer.score(record.answer, output)["rougeL"].recall)
        assert scores["mia_reference"][i] == pytest.approx(reference.mean_nll[i] - nll(record), abs=1e-3)
        size = len(zlib.compress(record.answer.encode()))
        assert scores["mia_zlib"][i] == pytest.approx(-nll(record) / size, rel=1e-3)
        if not record.paraphrases or not record.perturbed:
            assert math.isnan(scores["forget_truth_ratio"][i])
            assert math.isnan(scores["forget_truth_probability"][i])
            continue
        r = math.exp(np.mean([nll(record, a) for a in record.paraphrases])
                     - np.mean([nll(record, a) for a in record.perturbed]))  # fmt: skip
        assert scores["forget_truth_ratio"][i] == pytest.approx(min(r, 1 / r), rel=1e-3)
        assert scores["forget_truth_probability"][i] == pytest.approx(1 / (1 + r), rel=1e-3)
    rows = by_hand(model, *tokens_of(tokenizer, RECORDS[1]))[:-1]  # without the end
    take = max(1, math.floor(0.2 * len(rows)))
    assert scores["mia_min_k"][2] == pytest.approx(np.sort(rows[:, 0])[:take].mean(), rel=1e-3)
    scaled = np.sort((rows[:, 0] - rows[:, 2]) / np.maximum(rows[:, 3], 1e-3))
    assert scores["mia_min_k_plus_plus"][2] == pytest.approx(scaled[:take].mean(), rel=1e-3)


def test_names_of_every_side(speaker):
    # catches a held-out record that is scored as forgotten, and a name that no table of metrics has
    retain = ev.score_records(speaker, RECORDS[:3], side="retain")
    assert set(retain) == {n for n in forgetting.METRICS if n.startswith("retain")}
    holdout = ev.score_records(speaker, RECORDS[:3], side="holdout")
    assert set(holdout) == {"mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"}
    forget = ev.score_records(speaker, RECORDS[:3], side="forget")
    np.testing.assert_array_equal(forget["mia_loss"], holdout["mia_loss"])
    r = 1 / retain["retain_truth_probability"] - 1
    np.testing.assert_allclose(retain["retain_truth_ratio"], np.maximum(0, 1 - r), atol=1e-9)
    np.testing.assert_allclose(forget["forget_truth_ratio"], np.minimum(r, 1 / r), rtol=1e-9)
    assert all(v.shape == (3,) and v.dtype == np.float64 for side in (retain, holdout, forget) for v in side.values())


def test_a_reading_at_hand_is_not_taken_again(speaker, monkeypatch):
    # catches a second pass over the answers, and a reading of other records
    reading = speaker.read(SHORT)
    expected = ev.score_records(speaker, SHORT, side="holdout")
    monkeypatch.setattr(speaker, "_read", None)
    found = ev.score_records(speaker, SHORT, side="holdout", reading=reading)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    for wrong in (SHORT[:2], SHORT[::-1]):
        with pytest.raises(InputError, match="a reading of 3 answers"):
            ev.score_records(speaker, wrong, side="holdout", reading=reading)


def test_utility_is_a_harmonic_mean():
    # catches an arithmetic mean, a missing part that counts as 0 or 1, and a NaN that spreads
    values = {"retain_probability": np.array([0.2, 0.6]), "retain_rouge_l": np.array([0.5, np.nan]),
              "retain_truth_ratio": np.full(2, np.nan), "retain_truth_probability": np.array([0.1, 0.1])}  # fmt: skip
    assert ev.utility_parts(values) == ("retain_probability", "retain_rouge_l")
    assert ev.utility(values) == pytest.approx(harmonic_mean([0.4, 0.5]))
    values |= {"facts_rouge_l": np.array([0.9]), "retain_truth_ratio": np.array([np.nan, 0.3])}
    assert ev.utility(values) == pytest.approx(harmonic_mean([0.4, 0.5, 0.3, 0.9]))
    assert ev.utility({**values, "facts_rouge_l": np.zeros(3)}) == 0.0
    with pytest.raises(InputError, match="values of mia_loss"):
        ev.utility({"mia_loss": np.zeros(2)})


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_model_that_diverged_is_named_by_its_record(house, k):
    # catches a NaN that becomes a score, and the number of a row in a batch in the place of the record
    model, tokenizer = copy.deepcopy(house[0]), house[1]
    ids = [{*before, *after} for before, after in (tokens_of(tokenizer, r) for r in SHORT)]
    rare = max(ids[k] - ids[k - 1] - ids[k - 2])  # a token of this record alone
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # untie
    with torch.no_grad():
        model.model.embed_tokens.weight[rare] = torch.nan
    speaker = ev.Speaker(model, tokenizer)
    assert np.isfinite(speaker.read([SHORT[k - 1], SHORT[k - 2]]).sums).all()
    with pytest.raises(InputError, match=f"not finite at record {SHORT[k].id}"):
        speaker.read(SHORT)
    prompts = ["Where?", "Who wrote it?", "What?"]
    prompts[k] = SHORT[k].prompt + SHORT[k].answer
    with pytest.raises(InputError, match=f"NaN at record {SHORT[k].id}"):
        speaker.write(SHORT, prompts=prompts)


def test_bad_arguments(house, speaker):
    # catches input that is dropped or cut in silence
    model, tokenizer = house
    other = tiny_llama(tiny_tokenizer(["a"], vocabulary=260), hidden=16, layers=1)
    for call, words in (
        (lambda: ev.Speaker(model, tokenizer, batch_size=0), "batch_size = 0"),
        (lambda: ev.Speaker(model, tokenizer, template="chat"), "chat template"),
        (lambda: ev.Speaker(other, tokenizer), "the tokenizer of the model"),
        (lambda: speaker.read([]), "no records"),
        (lambda: speaker.write([]), "no records"),
        (lambda: speaker.read(SHORT, answers=["a"]), "1 answers for 3 records"),
        (lambda: speaker.read(SHORT, prompts="abc"), "one text for 3 records"),
        (lambda: speaker.write(SHORT, prompts=["a"] * 4), "4 prompts for 3 records"),
        (lambda: speaker.write(SHORT, max_new_tokens=0), "max_new_tokens = 0"),
        (lambda: speaker.read([replace(SHORT[1], answer="word " * 300)]), "record bo with"),
        (lambda: ev.score_records(speaker, SHORT, side="test"), "side = 'test'"),
        (lambda: ev.score_records(speaker, SHORT, side="forget", reference=speaker.read(RECORDS)), "a reference of 9"),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_losses_alone_are_those_of_a_reading(house):
    # catches: a mean over padding, an order of batches that is not undone, another answer's loss
    speaker = ev.Speaker(*house, batch_size=3)
    other = [r.perturbed[0] for r in RECORDS]
    np.testing.assert_allclose(speaker.losses(RECORDS), speaker.read(RECORDS).mean_nll, rtol=1e-6)
    np.testing.assert_allclose(
        speaker.losses(RECORDS, answers=other), speaker.read(RECORDS, answers=other).mean_nll, rtol=1e-6
    )
