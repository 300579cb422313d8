"""Edits by hooks, against copies whose weights are changed; what leaves no trace; files, gates, folders of peft."""

from __future__ import annotations

import copy
import hashlib
import pickle
import stat
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from upright.contract import InputError
from upright.editing.edits import (
    Edit,
    Editable,
    Gate,
    applied,
    base_checksum,
    fit_gate,
    load_edit,
    merged_copy,
    prompt_states,
    refuse_other_base,
)
from upright.models.tiny import tiny_llama, tiny_tokenizer

TOKENS = tiny_tokenizer(["Lagos was once the capital of Nigeria ."], vocabulary=270)
IDS = torch.arange(3, 27).view(3, 8)
DOWN = "model.layers.{}.mlp.down_proj"


def llama():
    return tiny_llama(TOKENS, hidden=16, layers=2, heads=2, context=64)


def gpt2():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=270, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.2)
        return GPT2LMHeadModel(config).eval()


def sites(model):
    name = "transformer.h.{}.mlp.c_proj" if hasattr(model, "transformer") else DOWN
    found = []
    for i in (0, 1):
        module = model.get_submodule(name.format(i))
        kind = "conv1d" if isinstance(module, Conv1D) else "linear"
        inputs, outputs = module.weight.shape if kind == "conv1d" else module.weight.shape[::-1]
        found.append(SimpleNamespace(
            name=name.format(i), module=module, layer=i, kind=kind, inputs=inputs, outputs=outputs,
        ))  # fmt: skip
    return found


def edit_of(model, seed=0, *, editor="lora", gate=None, **facts):
    made = Editable(sites(model), editor=editor, rank=2, seed=seed, gate=gate)
    draw = torch.Generator().manual_seed(seed)
    for p in made.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=draw).to(p)
    return made.edit({"base": base_checksum(model), **facts})


def logits(model, ids=IDS, **more):
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def digest(model):
    return hashlib.sha256(logits(model).numpy().tobytes()).hexdigest()


def said(error):
    return error.value.got, error.value.accepted, error.value.todo


# -- what an edit does ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("editor", ["lora", "dense"])
def test_hooks_against_weights_that_are_changed(make, editor):
    # catches: a product the wrong way round, a transposed Conv1D, a site that is left out, an edit counted twice
    model = make().double()
    edits = [edit_of(model, seed, editor=editor) for seed in (1, 2)]
    changed = copy.deepcopy(model)
    for edit in edits:
        for name, some in edit.factors.items():
            delta = some if editor == "dense" else some[1] @ some[0]
            weight = changed.get_submodule(name).weight
            weight.data += delta.T if make is gpt2 else delta
    with applied(model, edits):
        found = logits(model)
    torch.testing.assert_close(found, logits(changed), rtol=0, atol=1e-12)
    assert float((found - logits(model)).abs().max()) > 1e-3


def test_a_model_that_sees_is_edited_in_its_text_half_alone():
    # catches: look-alike names of the vision tower, and gates that miscount where image tokens stand in the prompt
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = LlamaConfig(vocab_size=64, num_key_value_heads=2, **width)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=63)
        model = LlavaForConditionalGeneration(config).eval()
        pixels = torch.randn(2, 3, 16, 16)
    name = "model.language_model.layers.1.mlp.down_proj"
    module = model.get_submodule(name)
    site = SimpleNamespace(name=name, module=module, layer=1, kind="linear", inputs=32, outputs=16)
    batch = {"input_ids": torch.tensor([[1, 63, 63, 63, 63, 5, 6, 7]] * 2), "pixel_values": pixels}
    batch["input_ids"][1, 6] = 9
    states = prompt_states(model, name, [batch])
    gate = fit_gate(name, states[:1], states[1:])
    made = Editable([site], editor="gated", rank=2, gate=gate)
    made.factors[name][1].data += 1.0
    before = model(**batch).logits
    with made.edit({}).applied(model):
        after = model(**batch).logits
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_no_product_of_low_rank_factors_is_made():
    # catches: B @ A as a dense matrix, which for a model of 7 billion parameters is the size of the weights
    model, shapes = llama(), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            out = operation(*args, **(kwargs or {}))
            if "mm" in operation.__name__:
                shapes.append(tuple(out.shape))
            return out

    site = sites(model)[0]
    with edit_of(model).applied(model), Watch():
        logits(model)
    assert shapes
    assert not {(site.outputs, site.inputs), (site.inputs, site.outputs)} & set(shapes)


# -- what leaves no trace ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [llama, gpt2])
def test_leaving_gives_every_bit_back(make):
    # catches: weights that are written, hooks that stay after an error or when contexts close out of order
    model = make()
    base, weights = digest(model), base_checksum(model)
    one, two = edit_of(model, 1), edit_of(model, 2, editor="dense")
    with one.applied(model):
        alone = digest(model)
    assert digest(model) == base != alone

    def fail():
        with one.applied(model), two.applied(model):
            assert digest(model) not in (base, alone)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert digest(model) == base
    first, second = ExitStack(), ExitStack()
    first.enter_context(one.applied(model))
    second.enter_context(two.applied(model))
    first.close()
    with two.applied(make()):
        pass
    second.close()
    assert (digest(model), base_checksum(model)) == (base, weights)
    with pytest.raises(InputError), applied(model, [one, edit_of(llama() if make is gpt2 else gpt2())]):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_edits_in_order_by_one_hook_a_site():
    # catches: edits at the same site of which the last one wins
    model = llama()
    one, two = edit_of(model, 1), edit_of(model, 2)
    with one.applied(model), two.applied(model):
        nested = digest(model)
    with applied(model, [one, two]):
        assert digest(model) == nested
        assert [len(site.module._forward_hooks) for site in sites(model)] == [1, 1]
    with applied(model, []):
        assert digest(model) != nested


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_edit_is_the_edit(tmp_path):
    # catches: factors or sites that change places, a threshold that is rounded, a file that others may read
    model = llama()
    gate = Gate(DOWN.format(0), torch.randn(2, 48, generator=torch.Generator().manual_seed(0)), 1 / 3)
    facts = {"prompt": '東京 " {', "time": "2026-01-31", "scores": {"rel": 1.0, "port": float("nan")}}
    for name, edit in {"gated": edit_of(model, editor="gated", gate=gate), "dense": edit_of(model, editor="dense"),
                       "lora": edit_of(model, 3, **facts)}.items():  # fmt: skip
        path = tmp_path / "new" / name
        assert edit.save(path) == hashlib.sha256(path.read_bytes()).hexdigest() == edit.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        again = load_edit(path)
        assert list(again.factors) == list(edit.factors)
        refuse_other_base(again, model)
        with edit.applied(model):
            wanted = digest(model)
        with again.applied(model):
            assert digest(model) == wanted
        assert again.gate is None or (again.gate.site, again.gate.threshold) == (gate.site, gate.threshold)
    assert again.facts == {**edit.facts, "scores": {"rel": 1.0, "port": None}}
    assert [p.name for p in path.parent.iterdir() if p.suffix] == []


CHANGED = "which changed since it was saved"
DAMAGED = "which is damaged or no edit"
PICKLED = "which is pickled: no such file is opened"


@pytest.mark.parametrize(("name", "change", "got"), [
    ("short", lambda b: b[:-7], DAMAGED),
    ("empty", lambda b: b"", DAMAGED),
    ("bit", lambda b: b[:-1] + bytes([b[-1] ^ 1]), CHANGED),
    ("fact", lambda b: b.replace(b"Abuja", b"Lagos"), CHANGED),
    ("weights", lambda b: safetensors.torch.save({"a": torch.ones(2)}), DAMAGED),
    ("header", lambda b: safetensors.torch.save({"a": torch.ones(2)}, {"upright-edit": "[1]"}), DAMAGED),
    ("pickle", lambda b: pickle.dumps({"a": 1}), PICKLED),
    ("zip", lambda b: b"PK\x03\x04" + b, PICKLED),
])  # fmt: skip
def test_files_that_are_no_edit(tmp_path, name, change, got):
    edit_of(llama(), target="Abuja").save(tmp_path / name)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(InputError) as error:
        load_edit(tmp_path / name)
    assert said(error) == (f"{name}, {got}", "a file that Edit.save wrote", "take it from a copy")


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(InputError) as error:
        load_edit(tmp_path / "none")
    assert said(error) == (
        "none, which cannot be read (FileNotFoundError)",
        "a file that Edit.save wrote",
        "check the path",
    )


def test_a_save_that_fails_leaves_what_was_there(tmp_path):
    # catches: an edit that is gone or torn after a full disk or facts that no file can hold
    edit = edit_of(llama())
    edit.save(tmp_path / "edit")
    before = (tmp_path / "edit").read_bytes()
    with pytest.raises(InputError) as error:
        Edit(edit.factors, {"image": object()}).save(tmp_path / "edit")
    assert said(error) == (
        "facts that are no JSON: Object of type object is not JSON serializable",
        "texts, numbers, lists, mappings",
        "turn images and paths into texts",
    )
    with pytest.raises(InputError, match="cannot be written"):
        edit.save(tmp_path / "edit" / "below")
    assert (tmp_path / "edit").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


# -- models that an edit is not for -----------------------------------------------------------------------------------


def test_other_weights(tmp_path):
    model, edit = llama(), edit_of(llama())
    refuse_other_base(edit, model)
    model.model.norm.weight.data[0] += 1e-6
    for use in (lambda: refuse_other_base(edit, model), lambda: edit.to_peft(tmp_path / "a", model),
                lambda: merged_copy(model, [edit], tmp_path / "b", TOKENS)):  # fmt: skip
        with pytest.raises(InputError) as error:
            use()
        assert said(error) == (
            f"an edit of the weights {edit.facts['base'][:12]}",
            f"the weights at hand, {base_checksum(model)[:12]}",
            "take the model that the edit was made for",
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("model", "got", "accepted", "todo"), [
    (gpt2, f"GPT2LMHeadModel without a linear map '{DOWN.format(0)}'", "a model with it",
     "take the model that the edit was made for"),
    (lambda: tiny_llama(TOKENS, hidden=24, heads=2), f"an edit of '{DOWN.format(0)}' in shape (16, 48)",
     "(24, 64), that of the model", "take the model that the edit was made for"),
    (lambda: llama().to(torch.bfloat16), f"'{DOWN.format(0)}' with weights in torch.bfloat16 or quantised",
     "float32 or float64", "load the model with dtype=torch.float32 and without quantisation"),
])  # fmt: skip
def test_models_that_an_edit_does_not_fit(model, got, accepted, todo):
    with pytest.raises(InputError) as error, edit_of(llama()).applied(model()):
        pass
    assert said(error) == (got, accepted, todo)


def test_quantised_weights_are_refused():
    model = llama()
    edit = edit_of(model)
    model.is_quantized = True  # as transformers marks it, whatever the type of its tensors says
    with pytest.raises(InputError, match="or quantised"), edit.applied(model):
        pass


@pytest.mark.parametrize(("factors", "gate", "got", "accepted", "todo"), [
    ({"s": (torch.ones(2, 3), torch.ones(4, 1))}, None, "an edit of 's' in shapes [(2, 3), (4, 1)]",
     "(r, inputs) and (outputs, r) with one r for all sites, or one dense", "see Editable"),
    ({"s": torch.ones(3)}, None, "an edit of 's' in shapes [(3,)]",
     "(r, inputs) and (outputs, r) with one r for all sites, or one dense", "see Editable"),
    ({"s": torch.full((2, 2), float("nan"))}, None, "an edit of 's' that is not finite", "finite numbers",
     "lower the learning rate"),
    ({}, None, "an edit of nothing", "at least one site, the gate at the first", "name the sites of the edit"),
    ({"s": torch.ones(2, 2)}, Gate("t", torch.ones(1, 2), 0.0), "a gate at 't'",
     "at least one site, the gate at the first", "name the sites of the edit"),
])  # fmt: skip
def test_edits_that_cannot_be(factors, gate, got, accepted, todo):
    # catches: an edit of NaN that answers nonsense once it is loaded
    with pytest.raises(InputError) as error:
        Edit(factors, {}, gate)
    assert said(error) == (got, accepted, todo)


# -- folders for others -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("make", [llama, gpt2])
def test_peft_reads_the_same_logits(make, tmp_path):
    # catches: a scaling other than 1, a Conv1D without fan_in_fan_out, names that peft does not find
    peft = pytest.importorskip("peft")
    model = make()
    edit = edit_of(model)
    with edit.applied(model):
        wanted = logits(model)
    edit.to_peft(tmp_path / "adapter", model)
    found = peft.PeftModel.from_pretrained(make(), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(found), wanted, rtol=0, atol=1e-6)
    names = {n for n, _ in found.named_parameters() if "lora_" in n}
    assert len(names) == 4  # two sites alone


def test_edits_that_peft_cannot_hold(tmp_path):
    model = llama()
    accepted = "low rank without a gate: an adapter of peft holds no more"
    gated = edit_of(model, editor="gated", gate=Gate(DOWN.format(0), torch.ones(1, 48), 0.0))
    with pytest.raises(InputError) as error:
        gated.to_peft(tmp_path / "adapter", model)
    assert said(error) == ("a gated edit for peft", accepted, "apply it with upright")
    with pytest.raises(InputError) as error:
        edit_of(model, editor="dense").to_peft(tmp_path / "adapter", model)
    assert said(error) == ("a dense edit for peft", accepted, "write a merged copy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_merged_copy_and_the_model_that_it_is_of(make, tmp_path):
    # catches: deltas written into the model at hand, a tied head that is saved apart, edits of which one is merged
    model = make()
    edits = [edit_of(model, 1), edit_of(model, 2, editor="dense")]
    base, weights = digest(model), base_checksum(model)
    merged_copy(model, edits, tmp_path / "out", TOKENS)
    assert (digest(model), base_checksum(model)) == (base, weights)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with applied(model, edits):
        torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-4)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert "lm_head.weight" not in safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_copies_that_are_refused(tmp_path):
    model = llama()
    edit = edit_of(model)
    gated = edit_of(model, editor="gated", gate=Gate(DOWN.format(0), torch.ones(1, 48), 0.0))
    with pytest.raises(InputError) as error:
        merged_copy(model, [gated], tmp_path / "out", TOKENS)
    assert said(error) == ("a gated edit for a merged copy", "edits that hold for every prompt", "leave it out")
    with pytest.raises(InputError) as error:
        merged_copy(model, [edit], tmp_path, TOKENS)
    assert said(error) == (f"--out {tmp_path.name}, which exists", "a new folder", "name another place")
    one, other = sites(model)
    other.module.weight = one.module.weight
    with pytest.raises(InputError) as error:
        merged_copy(model, [edit_of(model)], tmp_path / "out", TOKENS)
    assert said(error) == (
        f"'{one.name}' with a weight that other modules share",
        "a weight of its own",
        "apply the edit in place of merging it",
    )
    assert not list(tmp_path.iterdir())


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("editor", ["lora", "dense", "gated"])
def test_training_moves_the_factors_alone(editor):
    # catches: a first step that is not neutral, gradients on the model, an edit that training on goes on changing
    model = llama().requires_grad_(False)
    site = sites(model)[0].name
    states = prompt_states(model, site, [{"input_ids": IDS}])
    gate = fit_gate(site, states[:1], states[1:]) if editor == "gated" else None
    made = Editable(sites(model), editor=editor, rank=2, gate=gate)
    base, weights, losses, taken = digest(model), base_checksum(model), [], []
    optimiser = torch.optim.Adam(made.parameters(), lr=0.05)
    with made.hooked(model):
        assert digest(model) == base
        for _ in range(8):
            loss = -model(input_ids=IDS[:1]).logits[0, -1].log_softmax(-1)[5]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
            taken.append(made.edit({"base": weights}))
        last = logits(model)
    assert losses[-1] < losses[0] - 0.5
    assert base_checksum(model) == weights
    with taken[-1].applied(model):
        assert torch.equal(logits(model), last)
    with taken[3].applied(model):  # a good step to go back to
        assert float(-logits(model, IDS[:1])[0, -1].log_softmax(-1)[5]) == pytest.approx(losses[4], rel=1e-5)


def test_a_seed_is_a_start_by_name_of_site():
    model = llama()
    one, again = (Editable(sites(model), rank=2, seed=1).edit({}) for _ in range(2))
    alone = Editable(sites(model)[1:], rank=2, seed=1).edit({})
    other = Editable(sites(model), rank=2, seed=2).edit({})
    name = DOWN.format(1)
    assert torch.equal(one.factors[name][0], again.factors[name][0])
    assert torch.equal(one.factors[name][0], alone.factors[name][0])
    assert not torch.equal(one.factors[name][0], other.factors[name][0])


@pytest.mark.parametrize(("change", "got", "most"), [
    ({"editor": "rome"}, "editor='rome', rank=2, 2 sites, no gate", 16),
    ({"rank": 17}, "editor='lora', rank=17, 2 sites, no gate", 16),
    ({"rank": 0}, "editor='lora', rank=0, 2 sites, no gate", 16),
    ({"editor": "gated"}, "editor='gated', rank=2, 2 sites, no gate", 16),
    ({"gate": Gate("s", torch.ones(1, 2), 0.0)}, "editor='lora', rank=2, 2 sites, a gate", 16),
    ({"sites": []}, "editor='lora', rank=2, 0 sites, no gate", 0),
])  # fmt: skip
def test_settings_that_make_no_edit(change, got, most):
    with pytest.raises(InputError) as error:
        Editable(**{"sites": sites(llama()), "rank": 2} | change)
    accepted = f"lora, dense or gated; a rank from 1 to {most}; a gate with gated alone"
    assert said(error) == (got, accepted, "change these settings")


# -- gates ------------------------------------------------------------------------------------------------------------


def gated(model, mine=0, ids=IDS):
    """An edit for one of the prompts alone."""
    site = sites(model)[0].name
    states = prompt_states(model, site, [{"input_ids": ids}])
    other = [i for i in range(len(ids)) if i != mine]
    return edit_of(model, editor="gated", gate=fit_gate(site, states[[mine]], states[other]))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_gate_is_open_for_its_own_sequence_alone(make):
    # catches: one decision for a whole batch, and closed sequences that lose a bit
    model = make()
    before = logits(model)
    with gated(model).applied(model):
        after = logits(model)
        assert torch.equal(logits(model, IDS[1:]), logits(model, IDS[1:]))
    assert float((after[0] - before[0]).abs().max()) > 1e-3
    assert torch.equal(after[1:], before[1:])


def test_answers_and_padding_do_not_decide():
    # catches: a gate that reads the answer under teacher forcing, or the padding of a shorter prompt
    model = llama()
    edit, answer = gated(model), torch.tensor([[9, 2, 7]])
    with edit.applied(model):
        wanted = logits(model, IDS[:1])
        ids = torch.cat([IDS[:1], answer], dim=1)
        labels = torch.cat([torch.full_like(IDS[:1], -100), answer], dim=1)
        torch.testing.assert_close(logits(model, ids, labels=labels)[:, :8], wanted)
        right = torch.cat([IDS[:1], torch.zeros_like(answer)], dim=1)
        mask = torch.tensor([[1] * 8 + [0] * 3])
        torch.testing.assert_close(logits(model, right, attention_mask=mask)[:, :8], wanted)
        left, places = right.roll(3, 1), torch.tensor([[0] * 3 + list(range(8))])
        found = logits(model, left, attention_mask=mask.roll(3, 1), position_ids=places)
        torch.testing.assert_close(found[:, 3:], wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(wanted, logits(model, IDS[:1]), atol=1e-3)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_decision_holds_while_an_answer_is_written(beams):
    # catches: a gate that each written token decides anew, that is lost in cached steps, or that mixes up beams
    model = llama()
    edit = gated(model)
    for _, b in edit.factors.values():
        b *= 20  # so that other tokens are written
    mask = torch.ones_like(IDS)
    more = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    plain = model.generate(input_ids=IDS, attention_mask=mask, **more)
    with edit.applied(model):
        written = model.generate(input_ids=IDS, attention_mask=mask, **more)
        labels = written.clone()
        labels[:, :8] = -100
        forced = logits(model, written, labels=labels)
        for step in (model(input_ids=IDS, use_cache=True), model(input_ids=IDS, past_key_values=DynamicCache())):
            for i in range(8, written.shape[1]):  # the cache of the model, and one of the caller
                step = model(input_ids=written[:, i : i + 1], past_key_values=step.past_key_values)
            torch.testing.assert_close(step.logits[:, -1], forced[:, -1], rtol=1e-4, atol=1e-5)
    if beams == 1:
        assert torch.equal(forced[:, 7:-1].argmax(-1), written[:, 8:])
    assert not torch.equal(written[0], plain[0])
    assert torch.equal(written[1:], plain[1:])


def test_calls_in_which_a_gate_cannot_decide():
    model = llama()
    edit = gated(model)
    cache = model(input_ids=IDS, use_cache=True).past_key_values
    with edit.applied(model):
        with pytest.raises(InputError) as error:
            model(input_ids=IDS[:, :1], past_key_values=cache)
        assert said(error) == (
            "a cache that a gated edit has not seen from its beginning",
            "one begun in its context",
            "read the prompt again while the edit is applied",
        )
    late = Edit(edit.factors, {}, Gate(DOWN.format(1), edit.gate.key, 0.0))
    with late.applied(model), pytest.raises(InputError) as error:
        logits(model)
    assert said(error) == (
        f"'{DOWN.format(0)}' called before the gate at '{DOWN.format(1)}' decided",
        "the gate at the first site, the model called as a whole",
        "call the model that the edit is applied to",
    )
    with edit.applied(model), pytest.raises(InputError, match="called before the gate"):
        model.get_decoder()(input_ids=IDS)


def test_thresholds():
    # by hand: cosines with the mean are known; a gap is split in its middle, an overlap where it costs least
    def at(*degrees):
        angles = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    gate = fit_gate("s", at(-10.0, 10.0), at(60.0, 90.0))
    middle = float(torch.deg2rad(torch.tensor([10.0, 60.0])).cos().mean())
    assert gate.threshold == pytest.approx(middle, abs=1e-6)
    assert gate.similarity(3 * at(0.0, 60.0)).tolist() == pytest.approx([1.0, 0.5], abs=1e-6)
    mixed = fit_gate("s", at(-10.0, 10.0, -40.0, 40.0), at(30.0, 60.0, 70.0, 80.0, 90.0))
    assert mixed.threshold == pytest.approx(float(torch.deg2rad(torch.tensor([40.0, 60.0])).cos().mean()), abs=1e-6)
    for own, other in ((at(0.0), at(0.0)), (at(0.0), at()[:0]), (at(), at(0.0))):
        with pytest.raises(InputError) as error:
            fit_gate("s", own.reshape(-1, 2), other.reshape(-1, 2))
        assert said(error) == (
            f"{len(own.reshape(-1, 2))} prompts of the edit that no gate at 's' tells from {len(other)} others",
            "prompts of both kinds that differ there",
            "add others, or take an editor without a gate",
        )
