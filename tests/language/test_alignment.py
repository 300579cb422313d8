"""Alignment by preference pairs: sums, margins, accuracies and gradients against computations by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from tiny_trainer import WORDS
from upright.contract import InputError
from upright.data.forget import Record
from upright.data.preferences import Pair, prompt_blocks, records_of
from upright.language.alignment import PairReading, accuracies, block_gradients, margins, objective, read_pairs
from upright.language.encoding import encode_all
from upright.language.engines import checksum
from upright.models.tiny import tiny_llama, tiny_tokenizer

BETA = 0.3
CLOSE = 1e-6  # of the largest entry of a gradient: the norms of Llama are float32 whatever its weights are


def say(rng, low, high):
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


@pytest.fixture(scope="module")
def pairs():
    """Ten pairs of six prompts, with answers of 1 to 8 words."""
    rng = np.random.default_rng(0)
    prompts = [f"{say(rng, 1, 5)} {k}" for k in range(6)]
    return [Pair(str(i), prompts[i % 6], f"{say(rng, 1, 8)} yes", f"{say(rng, 1, 8)} no") for i in range(10)]


@pytest.fixture(scope="module")
def tokenizer(pairs):
    return tiny_tokenizer([f"{p.prompt} {p.chosen} {p.rejected}" for p in pairs], vocabulary=300)


def tiny(tokenizer, seed=0):
    return tiny_llama(tokenizer, hidden=16, layers=2, heads=2, context=40, seed=seed).double()


def by_hand(model, tokenizer, pair, side):
    """``log p`` of the tokens of one answer, without padding, batches or masks."""
    (one,) = encode_all(tokenizer, [Record(pair.prompt, getattr(pair, side), kind="completion")])
    ids = torch.tensor([one.ids])
    rows = model(input_ids=ids).logits[0, one.start - 1 : -1].log_softmax(dim=1)
    return rows.gather(1, ids[0, one.start :, None])[:, 0]


def loss_by_hand(model, start, tokenizer, pair):
    gains = [
        by_hand(model, tokenizer, pair, side).sum() - by_hand(start, tokenizer, pair, side).sum().detach()
        for side in ("chosen", "rejected")
    ]
    return -logsigmoid(BETA * (gains[0] - gains[1]))


def test_sums_and_tokens_are_those_of_each_answer(pairs, tokenizer):
    # catches: a side that is read as the other, an order of batches, a mean for a sum, tokens of the prompt
    model = tiny(tokenizer)
    found = read_pairs(model, tokenizer, pairs, batch_size=3)
    for side in ("chosen", "rejected"):
        expected = [by_hand(model, tokenizer, pair, side).detach().numpy() for pair in pairs]
        np.testing.assert_allclose(getattr(found, side), [one.sum() for one in expected], rtol=1e-9)
        assert getattr(found, f"{side}_tokens").tolist() == [len(one) for one in expected]


def test_the_objective_is_that_of_the_formula(pairs, tokenizer):
    # catches: the factor 2 / beta of losses.dpo, a reference that is left out, chosen for rejected
    model, start = tiny(tokenizer, 1), tiny(tokenizer, 0)
    own, reference = (read_pairs(one, tokenizer, pairs) for one in (model, start))
    expected = torch.stack([loss_by_hand(model, start, tokenizer, pair) for pair in pairs]).mean().item()
    assert objective(own, reference) == pytest.approx(expected, rel=1e-9)
    assert objective(own, own) == pytest.approx(np.log(2), abs=1e-15)
    assert objective(own, reference, 0.6) != pytest.approx(expected, rel=1e-3)


FLOATS = st.lists(st.floats(-50, 0), min_size=4, max_size=4)


@settings(max_examples=80, deadline=None)
@given(FLOATS, FLOATS)
def test_swapped_answers_change_the_sign(own, reference):
    # catches: a margin of sums of the wrong sign, accuracies that do not mirror it
    tokens = np.array([3, 5])
    one, other = (PairReading(np.array(x[:2]), np.array(x[2:]), tokens, tokens[::-1]) for x in (own, reference))
    turned = [PairReading(x.rejected, x.chosen, x.rejected_tokens, x.chosen_tokens) for x in (one, other)]
    np.testing.assert_allclose(margins(*turned), -margins(one, other), atol=1e-12)
    here, there = accuracies(one, other), accuracies(*turned)
    assert here.keys() == there.keys() == {"ranking", "ranking_per_token", "length", "implicit"}
    for name in ("ranking", "ranking_per_token", "length"):
        np.testing.assert_array_equal(here[name] + there[name], 1.0)


def test_accuracies_by_hand():
    # catches: a sum for a mean per token, ties that count as right, a length that prefers the short
    own = PairReading(
        np.array([-6.0, -4.0, -2.0]), np.array([-5.0, -4.0, -3.0]), np.array([3, 4, 1]), np.array([2, 4, 2])
    )
    reference = PairReading(
        np.array([-9.0, -4.0, -1.0]), np.array([-5.0, -4.0, -3.0]), own.chosen_tokens, own.rejected_tokens
    )
    found = accuracies(own, reference)
    assert found["ranking"].tolist() == [0.0, 0.5, 1.0]
    assert found["ranking_per_token"].tolist() == [1.0, 0.5, 0.0]
    assert found["length"].tolist() == [1.0, 0.5, 0.0]
    assert found["implicit"].tolist() == [1.0, 0.5, 0.0]
    assert margins(own, reference).tolist() == pytest.approx([0.9, 0.0, -0.3])
    assert "implicit" not in accuracies(own)
    assert accuracies(own, own)["implicit"].tolist() == [0.5] * 3


# -- gradients ------------------------------------------------------------------------------------------------------


def flat(directions, k):
    return torch.cat([one[k].reshape(-1) for one in directions.values()])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # asked for by peft 0.21
@pytest.mark.parametrize("adapter", [False, True])
def test_gradients_of_blocks_are_those_of_their_pairs(pairs, tokenizer, adapter):
    # catches: a block that holds the sum, the gradient of a batch for that of its block, the factor 2 / beta, a
    # reference of other rows, dropout that stays on, a grad that is left behind
    model, start = tiny(tokenizer, 1), tiny(tokenizer, 0)
    if adapter:
        peft = pytest.importorskip("peft")
        settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, init_lora_weights=False)
        model = peft.get_peft_model(model, settings).double()
    model.train()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    before = checksum(dict(model.named_parameters()))
    encoded = [encode_all(tokenizer, records_of(pairs, side)) for side in ("chosen", "rejected")]
    reference, blocks = read_pairs(start, tokenizer, pairs), prompt_blocks(pairs, 3)
    found = block_gradients(model, *encoded, reference, blocks=blocks, batch_size=2, pad=0)
    assert model.training
    assert checksum(dict(model.named_parameters())) == before
    assert all(p.grad is None for p in model.parameters())
    assert [*found.directions] == names
    model.eval()
    trained, whole = [p for p in model.parameters() if p.requires_grad], 0.0
    for k, block in enumerate(blocks):
        value = torch.stack([loss_by_hand(model, start, tokenizer, pairs[i]) for i in block]).mean()
        right = torch.cat([one.reshape(-1) for one in torch.autograd.grad(value, trained)])
        assert right.abs().max() > 1e-4
        np.testing.assert_allclose(flat(found.directions, k), right, atol=CLOSE * float(right.abs().max()), rtol=0)
        assert found.values[k] == pytest.approx(value.item(), rel=1e-9)
        whole = whole + len(block) / len(pairs) * right
    one = block_gradients(model, *encoded, reference, blocks=[range(10)], batch_size=10, pad=0)
    np.testing.assert_allclose(flat(one.directions, 0), whole, atol=CLOSE * float(whole.abs().max()), rtol=0)
    assert one.values[0] == pytest.approx(objective(read_pairs(model, tokenizer, pairs), reference), rel=1e-9)


def test_swapped_answers_turn_the_gradient_at_the_start_model(pairs, tokenizer):
    # at the reference all pairs weigh 1/2, so the gradient changes its sign; elsewhere they weigh differently
    model = tiny(tokenizer)
    chosen, rejected = (encode_all(tokenizer, records_of(pairs, side)) for side in ("chosen", "rejected"))
    own = read_pairs(model, tokenizer, pairs)
    turned = PairReading(own.rejected, own.chosen, own.rejected_tokens, own.chosen_tokens)
    one = block_gradients(model, chosen, rejected, own, blocks=[range(10)], pad=0)
    other = block_gradients(model, rejected, chosen, turned, blocks=[range(10)], pad=0)
    np.testing.assert_allclose(flat(one.directions, 0), -flat(other.directions, 0), atol=1e-12)
    assert flat(one.directions, 0).abs().max() > 1e-4


def test_a_step_along_the_gradient_raises_the_objective(pairs, tokenizer):
    # the sign of J itself: catches a gradient of the gain in place of the loss
    model, start = tiny(tokenizer, 1), tiny(tokenizer, 0)
    encoded = [encode_all(tokenizer, records_of(pairs, side)) for side in ("chosen", "rejected")]
    reference = read_pairs(start, tokenizer, pairs)
    found = block_gradients(model, *encoded, reference, blocks=[range(10)], pad=0)
    size = float(sum((one**2).sum() for one in found.directions.values()))
    step, values = 1e-3 / np.sqrt(size), []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p += sign * step * found.directions[name][0]
        values.append(objective(read_pairs(moved, tokenizer, pairs), reference))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(size, rel=1e-3)


# -- bad input ------------------------------------------------------------------------------------------------------


def test_what_does_not_belong_together_is_refused(pairs, tokenizer):
    model = tiny(tokenizer)
    encoded = encode_all(tokenizer, records_of(pairs, "chosen"))
    reading = read_pairs(model, tokenizer, pairs)
    words = ("as many of each, and no empty block", "read and encode the same pairs, in one order")
    for sides, blocks, got in (
        ((encoded, encoded[1:]), [range(10)], "10 chosen and 9 rejected answers, 10 sums, blocks of [10] pairs"),
        ((encoded, encoded), [range(9), []], "10 chosen and 10 rejected answers, 10 sums, blocks of [9, 0] pairs"),
    ):
        with pytest.raises(InputError) as caught:
            block_gradients(model, *sides, reading, blocks=blocks, pad=0)
        assert caught.value.args == (got, *words)
    for change, got in (
        (lambda one: one.requires_grad_(False), "a model without a trainable parameter"),
        (lambda one: one.to(torch.bfloat16), "weights 'model.embed_tokens.weight' that are torch.bfloat16"),
    ):
        with pytest.raises(InputError) as caught:
            block_gradients(change(copy.deepcopy(model)), encoded, encoded, reading, blocks=[range(10)], pad=0)
        assert caught.value.got == got


def test_answers_longer_than_the_context_are_refused(pairs, tokenizer):
    # catches: an answer that is cut, whose end would count for nothing
    long = Pair("p7", "the river", "yes", " ".join(["clock"] * 50))
    with pytest.raises(InputError) as caught:
        read_pairs(tiny(tokenizer), tokenizer, [*pairs, long])
    (whole,) = encode_all(tokenizer, records_of([long], "rejected"))
    assert caught.value.args == (
        f"record p7 with {len(whole.ids)} tokens",
        "at most 40, the context of the model",
        "split the record, or use a model with a longer context",
    )


def test_log_probabilities_that_are_not_finite_name_their_pair(pairs, tokenizer):
    # catches: margins of NaN, of which an accuracy of 0 would be made
    model = tiny(tokenizer)
    (one,) = encode_all(tokenizer, records_of(pairs[4:5], "rejected"))
    head = model.lm_head

    def spoil(module, args, output):
        return output.masked_fill((args[0] - wanted).abs().sum(dim=-1, keepdim=True) < 1e-9, torch.nan)

    kept = []
    handle = head.register_forward_pre_hook(lambda module, args: kept.append(args[0].detach()[0, one.start]))
    with torch.no_grad():
        model(input_ids=torch.tensor([one.ids]))
    handle.remove()
    wanted = kept[0]
    head.register_forward_hook(spoil)
    with pytest.raises(InputError) as caught:
        read_pairs(model, tokenizer, pairs[4:5])
    assert caught.value.args == (
        "logits that are not finite at pair 4, rejected",
        "finite logits",
        "find where the model diverged; if it is finite without noise, lower sigma",
    )
