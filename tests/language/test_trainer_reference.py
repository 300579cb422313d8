"""What unlearning keeps of the model before: stored sums, frozen models, and the base under an adapter."""

from __future__ import annotations

import copy
import types

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments

from tiny_trainer import data, make, tiny, weights
from upright.contract import InputError
from upright.language import adapters, references
from upright.language.reader import read_answers

pytestmark = pytest.mark.filterwarnings("ignore:nothing is forgotten")  # runs of a few steps


def run(folder, loss, **options):
    one = make(folder, loss, **options)
    one.train()
    return one


def cost(model, one):
    """``c_i`` and ``n_i`` of one record, without padding, batches or masks."""
    ids = torch.tensor([one.ids])
    logits = model(input_ids=ids).logits[0, one.start - 1 : -1]
    target = ids[0, one.start :]
    return cross_entropy(logits, target, reduction="sum"), len(target)


# -- references -----------------------------------------------------------------------------------------------------


def test_reference_sums_are_read_from_the_cache(tmp_path, monkeypatch):
    # catches a cache that is never hit; the numbers must be those of the start model
    first = run(tmp_path / "a", "npo", cache_dir=tmp_path / "cache")
    file = next((tmp_path / "cache").glob("reference-*.safetensors"))
    exact = [-cost(tiny(), one)[0].item() for one in data()[1]]
    np.testing.assert_allclose(first.reference.sums["forget"], exact, rtol=1e-5)
    monkeypatch.setattr(references, "write_tensors", lambda *a, **k: pytest.fail("computed again"))
    second = run(tmp_path / "b", "npo", cache_dir=tmp_path / "cache")
    assert torch.equal(weights(first.model), weights(second.model))
    monkeypatch.undo()
    file.write_bytes(file.read_bytes()[:-8])  # a damaged file is computed again, not believed
    third = run(tmp_path / "c", "npo", cache_dir=tmp_path / "cache")
    assert torch.equal(weights(first.model), weights(third.model))


def test_the_key_of_a_reference_changes_with_all_that_it_depends_on():
    # catches a stale reference: other weights, records, order, scope or precision
    _, forget, retain, _ = data()
    model = tiny()
    key = references.sums_key(model, forget, "answer")
    assert key == references.sums_key(tiny(), forget, "answer")
    others = [
        references.sums_key(tiny(seed=1), forget, "answer"), references.sums_key(model, retain, "answer"),
        references.sums_key(model, forget[::-1], "answer"), references.sums_key(model, forget, "sequence"),
        references.sums_key(model, forget, "answer", "bf16"), references.sums_key(tiny().bfloat16(), forget, "answer"),
    ]  # fmt: skip
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    others.append(references.sums_key(model, forget, "answer"))
    assert len({key, *others}) == 8


def test_reading_leaves_no_trace():
    # catches a model that is left in evaluation mode, a generator that moved, a gradient
    model = tiny().train()
    model.lm_head.eval()
    state = torch.random.get_rng_state()
    read_answers(model, data()[1], pad=0)
    assert model.training
    assert not model.lm_head.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_another_model_may_be_the_reference(tmp_path):
    # catches reference= that is ignored; with it the first NPO loss is no longer 2 / beta log 2
    own, other = run(tmp_path / "a", "npo"), run(tmp_path / "b", "npo", reference=tiny(seed=5))
    firsts = [one.state.log_history[0]["forget_loss"] for one in (own, other)]
    assert firsts[0] == pytest.approx(20 * np.log(2), rel=1e-5)
    assert abs(firsts[1] - firsts[0]) > 1e-3
    exact = [-cost(tiny(seed=5), one)[0].item() for one in data()[1]]
    np.testing.assert_allclose(other.reference.sums["forget"], exact, rtol=1e-5)


def test_sums_and_distributions_may_be_asked_for_at_once(tmp_path):
    # catches a speaker that is never found because sums are there already
    one = run(tmp_path / "a", "npo", retain_loss="kl")
    assert one.reference.keys[1] == references.checksum(tiny())
    assert one.state.log_history[0]["retain_loss"] == pytest.approx(0.0, abs=1e-6)
    assert one.state.log_history[1]["retain_loss"] > 1e-6


@pytest.mark.parametrize("loss", ["grad_diff_kl", "undial", "rmu"])
def test_a_frozen_copy_speaks_and_stays(tmp_path, loss):
    # catches a reference that is the trained model itself
    one = run(tmp_path / "a", loss, args={"max_steps": 4})
    given = run(tmp_path / "b", loss, reference=tiny(), args={"max_steps": 4})
    assert torch.equal(weights(one.model), weights(given.model))
    assert torch.equal(weights(given.reference.given), weights(tiny()))
    assert one.reference.keys == given.reference.keys == [references.checksum(tiny())]


OLD_NAME = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers by the old name
)

# -- adapters -------------------------------------------------------------------------------------------------------


def lora(**changes):
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], **changes})


NAME = "activation" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient"  # before 5.18
CHECKPOINTED = {f"{NAME}_checkpointing": True, f"{NAME}_checkpointing_kwargs": {"use_reentrant": True}}
CHECKPOINTED |= {"learning_rate": 0.5}


@pytest.mark.parametrize("on", [False, True])
def test_the_old_name_of_checkpointing_is_read(on):
    """Every trainer died of `'TrainingArguments' object has no attribute 'activation_checkpointing'`."""
    assert adapters.recomputes(types.SimpleNamespace(gradient_checkpointing=on)) is on
    assert adapters.recomputes(types.SimpleNamespace(activation_checkpointing=on, gradient_checkpointing=None)) is on


@OLD_NAME
def test_adapters_train_under_checkpointing(tmp_path):
    # spec 4.1 (#178): catches lora_B that stays all zero
    one = run(tmp_path, "npo", peft_config=lora(), args=CHECKPOINTED)
    trained = {name: p for name, p in one.model.named_parameters() if p.requires_grad}
    assert len(trained) == 8
    assert all(p.abs().sum() > 0 for name, p in trained.items() if "lora_B" in name)
    base = {name: p for name, p in one.model.named_parameters() if not p.requires_grad}
    assert sum(p.numel() for p in base.values()) == sum(p.numel() for p in tiny().parameters())
    plain = run(tmp_path, "npo", peft_config=lora(), args={"learning_rate": 0.5})
    np.testing.assert_allclose(weights(one.model), weights(plain.model), atol=1e-6)


@OLD_NAME
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # what the plant provokes in torch
@pytest.mark.parametrize("head", [False, True])
def test_missing_input_gradients_are_caught(tmp_path, head):
    # the plant of #178: without enable_input_require_grads nothing below the head is recorded
    changes = {"modules_to_save": ["lm_head"]} if head else {}
    model = tiny_untied()
    model.enable_input_require_grads = lambda: None
    with pytest.raises(
        InputError, match=r"no gradient for .*lora_A" if head else "a loss without gradient at step 1"
    ) as e:
        run(tmp_path, "npo", peft_config=lora(**changes), model=model, args=CHECKPOINTED)
    assert "enable_input_require_grads" in e.value.todo


def tiny_untied():
    """A model whose head is a tensor of its own."""
    model = tiny()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@OLD_NAME
@pytest.mark.parametrize("loss", ["npo", "grad_diff_kl", "undial", "rmu"])
def test_the_base_under_an_adapter_is_the_reference(tmp_path, loss):
    # catches an adapter that stays on, or off, and a copy of the model where none is needed
    options = {"peft_config": lora(), "args": {"max_steps": 3, "learning_rate": 0.5}}
    off = run(tmp_path / "a", loss, reference="adapter", **options)
    copied = run(tmp_path / "b", loss, reference=tiny(), **options)
    torch.testing.assert_close(weights(off.model), weights(copied.model), rtol=0, atol=1e-7)
    assert (weights(off.model) - weights(make(tmp_path, loss, **options).model)).abs().max() > 1e-5
    if loss != "npo":
        assert off.reference.keys == ["adapter"] == run(tmp_path / "c", loss, **options).reference.keys


@OLD_NAME
def test_an_adapter_that_is_not_neutral_is_no_start(tmp_path):
    # catches the base that speaks for a model which was taught through its adapter
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny(), lora())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p += 0.5
    before = copy.deepcopy(model)
    one = run(tmp_path, "undial", model=model)
    assert one.reference.keys == [references.checksum(before)]
