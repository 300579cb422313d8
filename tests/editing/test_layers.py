"""The maps that edits add to: in small models against their own forward pass, in all registered families by name."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from torch import nn

from upright.contract import InputError
from upright.editing.layers import sites

transformers = pytest.importorskip("transformers")
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as REGISTERED  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of models without their fast kernels

# -- small models ------------------------------------------------------------------------------------------------------

SHARED = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOWER = {  # as wide as the text, and deeper
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
}  # fmt: skip


def text(k, **more):
    return {**SHARED, "num_key_value_heads": 1, "intermediate_size": k, **more}


def opt(k):
    return {**SHARED, "model_type": "opt", "ffn_dim": k, "word_embed_proj_dim": 16}


LANGUAGE = "model.language_model.layers.#.mlp.down_proj"
SMALL = {  # config by inner width k, path of the site
    "llama": (text, "model.layers.#.mlp.down_proj"),
    "gpt2": (lambda k: {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": k},
             "transformer.h.#.mlp.c_proj"),
    "phi3": (text, "model.layers.#.mlp.down_proj"),
    "opt": (opt, "model.decoder.layers.#.fc2"),
    "mistral4": (lambda k: text(k, moe_intermediate_size=k, **LATENT), "model.layers.#.mlp.shared_experts.down_proj"),
    "llava": (lambda k: {"text_config": text(k, model_type="llama"),
                         "vision_config": {"model_type": "clip_vision_model", **TOWER}}, LANGUAGE),
    "qwen2_vl": (lambda k: {"text_config": text(k, rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                                                    "mrope_section": [1, 1, 2]}),
                            "vision_config": {"depth": 3, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}},
                 LANGUAGE),
    "idefics3": (lambda k: {"text_config": text(k, model_type="llama"), "vision_config": TOWER},
                 "model.text_model.layers.#.mlp.down_proj"),
    "blip-2": (lambda k: {"text_config": opt(k), "vision_config": TOWER,
                          "qformer_config": {**TOWER, "vocab_size": 64, "encoder_hidden_size": 16}},
               "language_model.model.decoder.layers.#.fc2"),
    "blip": (lambda k: {"text_config": text(k, encoder_hidden_size=16), "vision_config": TOWER},
             "text_decoder.bert.encoder.layer.#.output.dense"),
    "git": (lambda k: {**SHARED, "intermediate_size": k, "vision_config": TOWER}, "git.encoder.layer.#.output.dense"),
    "gemma4": (lambda k: {"text_config": text(k, head_dim=8, global_head_dim=8, hidden_size_per_layer_input=8,
                                              vocab_size_per_layer_input=64, num_kv_shared_layers=0),
                          "vision_config": None, "audio_config": None}, LANGUAGE),
}  # fmt: skip


def built(name, config):
    """A model from its config, for pictures where it is registered so; random weights, no download."""
    auto = transformers.AutoModelForImageTextToText if name in REGISTERED else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        return auto.from_config(transformers.CONFIG_MAPPING[name](**config)).eval()


def paths(found):
    return {re.sub(r"\.\d+\.", ".#.", site.name) for site in found}


def called(model):
    """Names of the linear maps of the decoder, in the order of its forward pass."""
    names, order = {module: name for name, module in model.named_modules()}, []
    kinds = (nn.Linear, transformers.pytorch_utils.Conv1D)
    hooks = [
        module.register_forward_hook(lambda module, *_: order.append(names[module]))
        for module in names
        if isinstance(module, kinds)
    ]
    crossed = any("crossattention" in name for name in names.values())
    more = {"encoder_hidden_states": torch.zeros(1, 3, 16)} if crossed else {}
    with torch.no_grad():
        model.get_decoder()(input_ids=torch.tensor([[3, 4, 5]]), **more)
    for hook in hooks:
        hook.remove()
    return order


@pytest.mark.parametrize("k", [24, 16])
@pytest.mark.parametrize("name", SMALL)
def test_the_site_ends_the_feed_forward_part_of_its_layer(name, k):
    """With k = 16 attention and feed-forward part are alike in every shape."""
    config, path = SMALL[name]
    model = built(name, config(k))
    found = sites(model)
    assert paths(found) == {path}
    assert [(site.layer, site.inputs, site.outputs) for site in found] == [(0, k, 16), (1, k, 16)]
    assert {site.kind for site in found} == {"conv1d" if name == "gpt2" else "linear"}
    assert all(model.get_submodule(site.name) is site.module for site in found)
    order = called(model)
    for site in found:
        layer = site.name[: re.search(r"\.\d+\.", site.name).end()]
        last = [one for one in order if one.startswith(layer) and "per_layer" not in one][-1]
        assert last == site.name  # the adapter of gemma4 comes later and is not the feed-forward part


class Routed(nn.Module):
    """Experts as modules, as models outside of transformers have them."""

    def __init__(self, dense):
        super().__init__()
        self.gate = nn.Linear(16, 2)
        self.experts = nn.ModuleList([dense, deepcopy(dense)])


EXPERTS = "a feed-forward part that every token passes: a dense layer or a shared expert"
HOLDS = ("a language or image-text model of transformers", "take one that has generate()")
SHAPES = ("layers with linear maps from that width and back", "unload adapters, or take another model")


def routed(layers):
    model = built("llama", text(24))
    for layer in layers:
        model.model.layers[layer].mlp = Routed(model.model.layers[layer].mlp)
    return model


def adapted():
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(built("llama", text(24)), peft.LoraConfig(target_modules=["down_proj"]))


def mixtral():
    return built("mixtral", text(24, num_local_experts=2, num_experts_per_tok=1))


REFUSED = {
    "experts in one tensor": (mixtral, "routed experts alone, such as model.layers.0.mlp.experts", EXPERTS,
                              "take a dense model"),
    "experts in a list": (lambda: routed([0, 1]), "routed experts alone, such as model.layers.0.mlp.experts", EXPERTS,
                          "take a dense model"),
    "state space": (lambda: built("mamba", {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2}),
                    "MambaModel without a feed-forward part of width 16", *SHAPES),
    "adapters in the way": (adapted, "LlamaModel without a feed-forward part of width 16", *SHAPES),
    "no head": (lambda: built("llama", text(24)).model, "LlamaModel, which has no decoder that writes text", *HOLDS),
    "no decoder": (lambda: transformers.BertForMaskedLM(transformers.BertConfig(**text(24))),
                   "BertForMaskedLM, which has no decoder that writes text", *HOLDS),
    "no model of transformers": (lambda: nn.Linear(2, 2), "Linear, which has no decoder that writes text", *HOLDS),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_without_a_site_is_refused(case):
    make, got, accepted, todo = REFUSED[case]
    with pytest.raises(InputError) as caught:
        sites(make())
    assert (caught.value.got, caught.value.accepted, caught.value.todo) == (got, accepted, todo)


def test_a_layer_of_routed_experts_among_dense_ones_is_left_out():
    assert [site.name for site in sites(routed([0]))] == ["model.layers.1.mlp.down_proj"]


def test_adapters_elsewhere_do_not_hide_the_sites():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(built("llama", text(24)), peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    assert paths(sites(model)) == {"base_model.model.model.layers.#.mlp.down_proj"}


# -- every registered family, from its default config, without memory --------------------------------------------------

L = "model.language_model.layers.#."
DENSE, MIXED, SHARED_EXPERT = f"{L}mlp.down_proj", "first layers dense", f"{L}mlp.shared_experts.down_proj"
FAMILIES = {
    DENSE: """cohere2_vision cosmos3_omni deepseek_vl deepseek_vl_hybrid exaone4_5 gemma3 gemma4 gemma4_unified glm46v
        glm4v glm_ocr glmga got_ocr2 hyperclovax_vision_v2 internvl janus lighton_ocr llava llava_next llava_next_video
        llava_onevision minicpm_ocr minicpmv4_6 minicpmv4_7 mistral3 mllama molmo2 muse_glimmer ovis2 paddleocr_vl
        paligemma pp_chart2table qianfan_ocr qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_5 qwen3_vl shieldgemma2
        video_llama_3 video_llava vipllava""",
    MIXED: "dots3_note ernie4_5_vl_moe glm4v_moe glm5_next kimi_k25 mistral_large4 step3p7 unlimited_ocr",
    SHARED_EXPERT: "aria minimax_m3_vl",
    f"{L}mlp.shared_expert.down_proj": "qwen3_5_moe",
    f"{L}mlp.post_expert_proj": "muse_spark",
    f"{L}mlp.fc2": "cosmos3_edge",
    f"{L}mlp.dense_4h_to_h": "fuyu",
    f"{L}feed_forward.w2": "lfm2_vl lfm3_vl",
    "language_model.model.layers.#.feed_forward.shared_expert.down_proj": "llama4",
    "model.layers.#.mlp.shared_experts.down_proj": "mistral4",
    "model.text_model.layers.#.mlp.down_proj": "granite_docling idefics2 idefics3 smolvlm",
    "language_model.model.decoder.layers.#.fc2": "blip-2 instructblip instructblipvideo",
    "text_model.model.layers.#.ffn.fc2": "kosmos-2 kosmos-2.5",
    "text_decoder.bert.encoder.layer.#.output.dense": "blip",
    "decoder.bert.encoder.layer.#.output.dense": "vision-encoder-decoder",
    "git.encoder.layer.#.output.dense": "git",
    "decoder.layer.#.mlp.DenseReluDense.wo": "pix2struct",
    "decoder.block.#.layer.#.DenseReluDense.wo": "udop",
    "model.language_model.decoder.layers.#.fc2": "florence2",
    "model.decoder.layers.#.fc2": "pp_formulanet opt",
    "model.decoder.layers.#.mlp.down_proj": "t5gemma2",
    "model.layers.#.mlp.down_proj": "idefics llama qwen2 qwen3 gemma3_text phi3 olmo2 mistral glm smollm3",
    "transformer.h.#.mlp.c_proj": "gpt2",
    "model.layers.#.mlp.c_proj": "starcoder2",
    "transformer.h.#.mlp.dense_4h_to_h": "falcon bloom",
    "gpt_neox.layers.#.mlp.dense_4h_to_h": "gpt_neox",
}
HYBRID = "nemotron_h_omni"  # layers of state space and of attention have no site
WITHOUT = {
    **dict.fromkeys(
        ("inkling2", "inkling_mm_model", "qwen3_omni_moe_thinker", "qwen3_vl_moe"),
        "routed experts alone, such as model.language_model.layers.0.mlp.experts",
    ),
    "mixtral": "routed experts alone, such as model.layers.0.mlp.experts",
    "pi0": "PI0ForConditionalGeneration, which has no decoder that writes text",
}
# not built from their default configs, which lack a size, or for want of timm or of a class for the default config
UNBUILT = """aya_vision chameleon cohere_compass deepseek_ocr2 diffusion_gemma emu3 evolla fast_vlm gemma3n
    granite4_vision hunyuan_vl perception_lm qwen4_exp"""
EXPECTED = {name: path for path, names in FAMILIES.items() for name in names.split()}


def without_memory(name):
    if name not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    with torch.device("meta"):
        return built(name, {})


@pytest.mark.slow
def test_every_registered_type_has_a_row():
    assert set(REGISTERED) - set(EXPECTED) - set(WITHOUT) - {HYBRID} == set(UNBUILT.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_every_layer_of_every_family_has_its_site(name):
    model = without_memory(name)
    found, path = sites(model), EXPECTED[name]
    assert paths(found) == ({DENSE, SHARED_EXPERT} if path == MIXED else {path})
    stack = model.get_submodule(re.split(r"\.\d+\.", found[0].name)[0])
    assert [site.layer for site in found] == list(range(len(stack)))
    if path == MIXED:
        dense = [site.name.endswith("mlp.down_proj") for site in found]
        assert dense == sorted(dense, reverse=True)


@pytest.mark.slow
def test_hybrids_have_sites_where_they_have_a_feed_forward_part():
    found = [(site.layer, site.name.partition("mixer.")[2]) for site in sites(without_memory(HYBRID))]
    assert found == [(1, "shared_experts.down_proj"), (3, "down_proj")]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT)
def test_families_without_a_site_are_refused_by_name(name):
    with pytest.raises(InputError) as caught:
        sites(without_memory(name))
    assert caught.value.got == WITHOUT[name]
