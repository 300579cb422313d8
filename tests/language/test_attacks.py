"""Attacks on a model that seems to have forgotten: bounds of rounding, training by hand, shares by construction."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.data.forget import tofu_records
from upright.language import attacks as rb
from upright.language import pages
from upright.language.encoding import collate, encode_all
from upright.language.evaluation import Speaker
from upright.models.tiny import tiny_llama, tiny_tokenizer

pytest.importorskip("transformers")

RECORDS, RETAIN = tofu_records()[:6], tofu_records()[20:24]
SEEDS = st.integers(0, 2**31 - 1)


def draw(seed, *shape, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=g) * 10.0 ** (6 * torch.rand(*shape[:-1], 1, generator=g) - 3)).to(dtype)


def train(model, batch, steps, rate, sign=1.0):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (sign * model(**batch).loss).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def house():
    """A model that was taught all records, the same pushed away from RECORDS, and one that saw RETAIN alone."""
    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in RECORDS + RETAIN], vocabulary=400)
    forget, retain, both = (collate(encode_all(tokenizer, s), 0) for s in (RECORDS, RETAIN, RECORDS + RETAIN))
    start = tiny_llama(tokenizer, hidden=32, layers=2)
    taught = train(copy.deepcopy(start), both, 60, 1e-2)
    unlearned = train(copy.deepcopy(taught), forget, 8, 1e-3, sign=-1.0)
    never = train(copy.deepcopy(start), retain, 60, 1e-2)
    for model in (taught, unlearned, never):
        model.zero_grad()
    return taught, unlearned, never, tokenizer


def state(model):
    return {name: one.clone() for name, one in model.state_dict().items()}


def same(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in before)


# -- rounding -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(2, 8), st.integers(1, 70), st.sampled_from([1, 5, 64, 130]))
def test_rounding_keeps_its_bound(seed, bits, group, width):
    # catches a scale over the whole matrix, a group that runs over the end of a row, truncation for rounding
    w = draw(seed, 3, width)
    out = rb.rounded(w, bits=bits, group=group)
    assert out.shape == w.shape
    assert out.dtype == w.dtype
    for row, new in zip(w.double(), out.double(), strict=True):
        for at in range(0, width, group):
            part, found = row[at : at + group], new[at : at + group]
            scale = float(part.abs().max()) / (2 ** (bits - 1) - 1)
            assert float((part - found).abs().max()) <= scale / 2 * (1 + 1e-6)
            assert len(found.unique()) <= 2**bits - 1
            top = int(part.abs().argmax())
            assert found[top] == part[top]  # the largest weight stays: no clipping, no overflow to the other sign


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(2, 8), st.integers(1, 70), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_rounding_twice_is_rounding_once(seed, bits, group, dtype):
    # catches a scale computed in the type of the weights, which drifts from one rounding to the next
    w = torch.nan_to_num(draw(seed, 4, 65, dtype=dtype))
    once = rb.rounded(w, bits=bits, group=group)
    assert torch.equal(rb.rounded(once, bits=bits, group=group), once)
    assert torch.equal(rb.rounded(-w, bits=bits, group=group), -once)  # symmetric


def test_rounding_by_hand():
    # 4 bits: scale 7 / 7 = 1, so 1.4 -> 1 and -3.6 -> -4; of zeros nothing but zeros
    w = torch.tensor([[7.0, 1.4, -3.6, 0.2], [0.0, 0.0, 0.0, 14.0]])
    assert rb.rounded(w, bits=4, group=4).tolist() == [[7.0, 1.0, -4.0, 0.0], [0.0, 0.0, 0.0, 14.0]]
    assert rb.rounded(w, bits=2, group=2)[1].tolist() == [0.0, 0.0, 0.0, 14.0]
    assert torch.equal(rb.rounded(w, bits=3, group=1), w)  # a scale a weight


def test_a_model_in_few_bits(house):
    # catches rounding in place, norms that are rounded, embeddings that come untied, and bits that do nothing
    model = copy.deepcopy(house[0])
    before = state(model)
    few = rb.round_to_bits(model, 4, group=16)
    assert same(model, before)
    assert few.lm_head.weight is few.model.embed_tokens.weight
    for name, one in few.state_dict().items():
        if one.ndim >= 2:
            assert torch.equal(one, rb.rounded(before[name], bits=4, group=16))
            assert not torch.equal(one, before[name])
        else:
            assert torch.equal(one, before[name])
    again = rb.round_to_bits(few, 4, group=16)
    assert same(again, state(few))
    batch = collate(encode_all(house[3], RECORDS), 0)
    with torch.no_grad():
        exact, losses = model(**batch).loss, [rb.round_to_bits(model, b)(**batch).loss for b in (16, 8, 3)]
    errors = [abs(float(one - exact)) for one in losses]
    assert errors[0] < 1e-3  # 16 bits are nearly exact
    assert errors[0] < errors[1] < errors[2]


# -- relearning -----------------------------------------------------------------------------------------------------


def test_relearning_lowers_the_loss_and_leaves_the_model(house):
    # catches training in place, gradients left behind, and a step in the wrong direction
    model = copy.deepcopy(house[1]).train()
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.ones_like(model.model.norm.weight)
    before = state(model)
    encoded = encode_all(house[3], RECORDS)
    with torch.no_grad():  # as it may be called from an evaluation
        out = rb.relearn(model, encoded, steps=10, learning_rate=1e-3, batch_size=4)
    assert same(model, before)
    assert torch.equal(model.model.norm.weight.grad, torch.ones_like(model.model.norm.weight))
    assert out.training
    assert all(one.grad is None for one in out.parameters())
    assert not out.model.layers[0].mlp.up_proj.weight.requires_grad
    assert not torch.equal(out.model.layers[0].mlp.up_proj.weight, frozen)  # an attacker trains what he likes
    old, new = (Speaker(m, house[3]).read(RECORDS).mean_nll for m in (model, out))
    assert (new < old).all()
    assert same(rb.relearn(model, encoded, steps=0, learning_rate=1e-3), before)


def test_relearning_is_adamw_on_the_mean_loss_per_token(house):
    # catches a mean over samples, scored prompts or padding, and weight decay
    encoded = encode_all(house[3], RECORDS)
    model = copy.deepcopy(house[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(**collate(encoded, 0)).loss.backward()
        optimizer.step()
    found = rb.relearn(house[1], encoded, steps=3, learning_rate=1e-3, batch_size=64)
    for (name, one), other in zip(found.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4, msg=name)


def test_the_order_of_records_follows_the_seed(house):
    # catches a global generator, and steps that see some records twice before others once
    encoded = encode_all(house[3], RECORDS)
    one, two, other = (
        rb.relearn(house[1], encoded, steps=2, learning_rate=1e-3, batch_size=2, seed=s) for s in (1, 1, 2)
    )
    assert same(two, state(one))
    assert not same(other, state(one))
    batches = rb._batches(7, 8, 3, seed=0)
    assert [len(b) for b in batches] == [3, 3, 1, 3, 3, 1, 3, 3]
    for at in (0, 3):
        assert sorted(sum(batches[at : at + 3], start=[])) == list(range(7))  # noqa: RUF017
    assert batches[:3] != batches[3:6]


@given(st.integers(1, 50), SEEDS)
def test_halves_are_a_partition(n, seed):
    # catches a record that is trained on and scored
    first, second = rb.halves(n, seed)
    assert sorted(first + second) == list(range(n))
    assert 0 <= len(first) - len(second) <= 1


# -- all attacks ----------------------------------------------------------------------------------------------------


def test_every_attack_by_hand(house):
    # catches a record scored by the model that was trained on it, scores in another order, the wrong copy attacked
    model, tokenizer = copy.deepcopy(house[1]), house[3]
    records = [replace(r, other_prompt="") if i == 2 else r for i, r in enumerate(RECORDS[:5])]
    before = state(model)
    speaker = Speaker(model, tokenizer, batch_size=3)
    p = rb.attacked(speaker, records, retain=RETAIN, steps=4, learning_rate=1e-3, seed=3)
    assert list(p) == ["none", "rounding", "paraphrase", "relearn", "relearn_retain"]
    assert same(model, before)
    read = lambda m, some, **o: np.exp(-Speaker(m, tokenizer).read(some, **o).mean_nll)  # noqa: E731
    np.testing.assert_allclose(p["none"], read(model, records), rtol=1e-4)
    np.testing.assert_allclose(p["rounding"], read(rb.round_to_bits(model), records), rtol=1e-4)
    for i, record in enumerate(records):
        if i == 2:
            assert math.isnan(p["paraphrase"][i])
        else:
            other = replace(record, prompt=record.other_prompt)
            np.testing.assert_allclose(p["paraphrase"][i], read(model, [other])[0], rtol=1e-4)
    options = {"steps": 4, "learning_rate": 1e-3, "seed": 3, "batch_size": 3}
    for own, rest in (rb.halves(5, 3), rb.halves(5, 3)[::-1]):
        attacked = rb.relearn(model, encode_all(tokenizer, [records[i] for i in own]), **options)
        np.testing.assert_allclose(p["relearn"][rest], read(attacked, [records[i] for i in rest]), rtol=1e-3)
    attacked = rb.relearn(model, encode_all(tokenizer, RETAIN), **options)
    np.testing.assert_allclose(p["relearn_retain"], read(attacked, records), rtol=1e-3)


def test_hidden_answers_come_back(house):
    # catches an attack that does nothing: this model was pushed away by 8 small steps, so training brings back most
    taught, unlearned, never, tokenizer = house
    before, level = (np.exp(-Speaker(m, tokenizer).losses(RECORDS)) for m in (taught, never))
    found = rb.attacked(Speaker(unlearned, tokenizer), RECORDS, steps=6, learning_rate=1e-3)
    assert "relearn_retain" not in found
    share = {attack: rb.recovered_share(before, found["none"], own, level) for attack, own in found.items()}
    assert share["none"] <= 0.0
    assert share["relearn"] > 0.2


def test_attacks_that_cannot_be_made_are_left_out(house):
    # catches a single record that would be trained on and scored, and NaN in the place of a missing attack
    speaker = Speaker(house[1], house[3])
    assert list(rb.attacked(speaker, [replace(RECORDS[0], other_prompt=" ")])) == ["none", "rounding"]


def test_relearning_scores_no_record_that_was_taught_and_teaches_both_sides(house):
    """A verdict without relearning says that records are gone which a few steps on their like bring back."""
    model, tokenizer = copy.deepcopy(house[1]), house[3]
    speaker, unseen = Speaker(model, tokenizer, batch_size=4), tofu_records()[800:805]
    before = state(model)
    found = rb.stronger(speaker, RECORDS, unseen, steps=3, learning_rate=1e-3, seed=2)
    assert same(model, before)
    asked = [r.other_prompt for r in RECORDS]
    nll = speaker.read(RECORDS, prompts=asked).mean_nll
    np.testing.assert_allclose(found["forget"].get("mia_loss_paraphrased", -nll), -nll)
    assert ("mia_loss_paraphrased" in found["forget"]) == all(r.other_prompt for r in unseen)
    cuts = rb.halves(6, 2), rb.halves(5, 2)
    for own, rest in ((0, 1), (1, 0)):
        some = [RECORDS[i] for i in cuts[0][own]] + [unseen[i] for i in cuts[1][own]]
        copied = rb.relearn(model, encode_all(tokenizer, some), steps=3, learning_rate=1e-3, batch_size=4, seed=2)
        for side, records, cut in (("forget", RECORDS, cuts[0]), ("holdout", unseen, cuts[1])):
            expected = -Speaker(copied, tokenizer).losses([records[i] for i in cut[rest]])
            np.testing.assert_allclose(found[side]["mia_loss_relearned"][cut[rest]], expected, rtol=1e-3)
    assert rb.stronger(speaker, RECORDS, [], steps=3) == {"forget": {}, "holdout": {}}
    assert "mia_loss_relearned" not in rb.stronger(speaker, RECORDS, unseen, steps=0)["forget"]


def test_attacks_are_reported_with_the_share_that_came_back(house):
    # catches shares against the wrong model, and a reference that is not attacked
    taught, unlearned, never, tokenizer = house
    speaker, reference, before = (Speaker(m, tokenizer) for m in (unlearned, never, taught))
    found = rb.hardened(speaker, RECORDS, retain=RETAIN, reference=reference, before=before)
    own, other = (rb.attacked(one, RECORDS, retain=RETAIN) for one in (speaker, reference))
    old = np.exp(-before.losses(RECORDS)).mean()
    floor = max(own["none"].mean(), other["none"].mean())
    assert set(found["attacks"]) == set(own) == {"none", "rounding", "paraphrase", "relearn", "relearn_retain"}
    for attack, row in found["attacks"].items():
        mean = own[attack].mean()
        assert row["probability"]["value"] == pytest.approx(mean, rel=1e-5)
        assert row["recovered"] == pytest.approx((mean - floor) / (old - floor), abs=1e-5)
        assert row["reference"]["value"] == pytest.approx(other[attack].mean(), rel=1e-5)
    few = rb.hardened(speaker, RECORDS[:4])
    assert all(row == {"probability": None, "recovered": None, "reference": None} for row in few["attacks"].values())
    text = "\n".join(pages.robustness_lines(found))
    assert "; the reference " in text
    assert "10 steps" in text
    assert pages.robustness_lines(None) == []


# -- recovered share ------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 30), st.floats(-0.5, 1.5))
def test_shares_by_construction(seed, n, share):
    # catches a swapped pair of models, and a mean of ratios where the ratio of means is defined
    rng = np.random.default_rng(seed)
    new = rng.random(n)
    old = new + 0.1 + rng.random(n)
    assert rb.recovered_share(old, new, new) == 0.0
    assert rb.recovered_share(old, new, old) == 1.0
    at = new.mean() + share * (old.mean() - new.mean())
    now = rng.random(n)
    assert rb.recovered_share(old, new, now - now.mean() + at) == pytest.approx(share, abs=1e-9)
    # with a level above the unlearned model, coming back to that level is no recovery
    level = (new + old) / 2
    assert rb.recovered_share(old, new, level, level) == pytest.approx(0.0, abs=1e-12)
    assert rb.recovered_share(old, new, new, level) == pytest.approx(-1.0)
    assert rb.recovered_share(old, new, old, level) == pytest.approx(1.0)
    assert rb.recovered_share(old, new, level, new - 1) == pytest.approx(0.5)  # a lower level changes nothing
    assert math.isnan(rb.recovered_share(new, old, new))
    assert math.isnan(rb.recovered_share(new, new, old))


def test_share_over_the_records_that_all_have():
    # catches NaN of one attack that is averaged away on its own side alone
    old, new = np.array([0.8, 0.8, 0.1]), np.array([0.2, 0.2, 0.1])
    assert rb.recovered_share(old, new, np.array([0.5, np.nan, np.nan])) == pytest.approx(0.5)
    assert math.isnan(rb.recovered_share(old, new, np.full(3, np.nan)))


# -- refusals -------------------------------------------------------------------------------------------------------


def test_bad_arguments(house):
    # catches input that gives a model without an attack
    model, tokenizer = house[1], house[3]
    encoded = encode_all(tokenizer, RECORDS[:2])
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    for call, words in (
        (lambda: rb.rounded(torch.ones(2, 2), bits=1), "bits = 1"),
        (lambda: rb.rounded(torch.ones(2, 2), bits=17), "bits = 17"),
        (lambda: rb.rounded(torch.ones(2, 2), group=0), "group = 0"),
        (lambda: rb.rounded(torch.ones(2, 2, dtype=torch.int64)), "torch.int64"),
        (lambda: rb.round_to_bits(broken), "not finite"),
        (lambda: rb.round_to_bits(torch.nn.LayerNorm(3)), "without floating point matrices"),
        (lambda: rb.relearn(model, [], steps=1, learning_rate=1e-3), "0 records"),
        (lambda: rb.relearn(model, encoded, steps=-1, learning_rate=1e-3), "steps = -1"),
        (lambda: rb.relearn(model, encoded, steps=1, learning_rate=0.0), "learning_rate = 0.0"),
        (lambda: rb.relearn(model, encoded, steps=1, learning_rate=math.nan), "learning_rate = nan"),
        (lambda: rb.relearn(model, encoded, steps=1, learning_rate=1e-3, batch_size=0), "batch_size = 0"),
        (lambda: rb.relearn(model, encoded, steps=5, learning_rate=1e30), "nan"),
    ):
        with pytest.raises(InputError, match=words):
            call()
