"""Questions as tokens, family by family: where the answer begins, what a model is asked, what is refused."""

from __future__ import annotations

import importlib
import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from upright.contract import InputError
from upright.editing.prompts import EncodedQuestion, Question, answers, by_kind, collate, encode, read
from upright.models.tiny import tiny_llama, tiny_tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of image processors

ASKED = ("what is the capital?", "name the country of this flag, please.")
SAID = ("Astana", "Chad in Africa")
TURNS = (  # ends in a space, which belongs to the first token of the answer
    "{% for m in messages %}<|turn|>{{ m.role }}: {% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% if m.role == 'assistant' %}<eos>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TEXT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": True,
}  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
SIGHT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
EYE = {"hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
SIZE = {"height": 32, "width": 32}
GRID = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
PATCHES = {"patch_size": 8, "size": {"shortest_edge": 256, "longest_edge": 1024}}
OPT = {"model_type": "opt", "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
       "word_embed_proj_dim": 16, "max_position_embeddings": 256, "eos_token_id": 2}  # fmt: skip
QFORMER = {**{k: SIGHT[k] for k in list(SIGHT)[:4]}, "encoder_hidden_size": 16}
QWEN = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")

# name: image processor and its arguments, processor and its arguments, special tokens with the one that stands for an
# image (under a name where a tokenizer must know it so), what the template writes for it, and the model
FAMILIES = {
    "llava": ("clip", {"size": SIZE, "crop_size": SIZE}, "Llava", {"patch_size": 8, "num_additional_image_tokens": 1,
              "vision_feature_select_strategy": "default"}, ("<image>",), "<image>",
              {"vision_feature_layer": -1, "vision_config": {"model_type": "clip_vision_model", **SIGHT},
               "text_config": {"model_type": "llama"}}),
    "llava_next": ("llava_next", {"size": {"shortest_edge": 32}, "crop_size": SIZE, **GRID}, "LlavaNext",
                   {"patch_size": 8, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
                   ("<image>",), "<image>", {"vision_feature_layer": -1, **GRID,
                   "vision_config": {"model_type": "clip_vision_model", **SIGHT},
                   "text_config": {"model_type": "llama"}}),
    "llava_onevision": ("llava_onevision", {"size": SIZE, **GRID}, "LlavaOnevision", {"num_image_tokens": 16,
                        "vision_feature_select_strategy": "full"}, ("<image>", "<video>"), "<image>",
                        {"vision_feature_layer": -1, **GRID, "text_config": {"model_type": "qwen2"},
                         "vision_config": {"model_type": "siglip_vision_model", **SIGHT}}),
    "qwen2_vl": ("qwen2_vl", PATCHES, "Qwen2VL", {}, QWEN, "".join(QWEN[:3]), {"text_config": ROPE,
                 "vision_config": {**EYE, "embed_dim": 16, "mlp_ratio": 2}}),
    "qwen2_5_vl": ("qwen2_vl", PATCHES, "Qwen2_5_VL", {}, QWEN, "".join(QWEN[:3]), {"text_config": ROPE,
                   "vision_config": {**EYE, "window_size": 32, "fullatt_block_indexes": [1]}}),
    "qwen3_vl": ("qwen2_vl", PATCHES, "Qwen3VL", {}, QWEN, "".join(QWEN[:3]), {"text_config": ROPE,
                 "vision_config": {**EYE, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}}),
    "glm4v": ("glm4v", PATCHES, "Glm4v", {}, ("<|image|>", "<|video|>"), "<|image|>", {"text_config": ROPE,
              "vision_config": {**EYE, "image_size": 32}}),
    "idefics2": ("idefics2", {"size": {"longest_edge": 32, "shortest_edge": 24}, "do_image_splitting": False},
                 "Idefics2", {"image_seq_len": 4}, ("<image>", "<fake_token_around_image>", "<end_of_utterance>"),
                 "<image>", {"vision_config": SIGHT, "text_config": {"model_type": "mistral"}, "perceiver_config": {
                 "hidden_size": 16, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
                 "resampler_head_dim": 8, "num_key_value_heads": 1}}),
    "idefics3": ("idefics3", {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}, "Idefics3",
                 {"image_seq_len": 4}, ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
                 "<image>", {"scale_factor": 2, "vision_config": SIGHT, "text_config": {"model_type": "llama"}}),
    "gemma3": ("gemma3", {"size": SIZE}, "Gemma3", {"image_seq_length": 4},
               {"image_token": "<soft>", "boi_token": "<boi>", "eoi_token": "<eoi>"}, "<boi>",
               {"mm_tokens_per_image": 4, "vision_config": SIGHT, "text_config": {"sliding_window": 64,
                "query_pre_attn_scalar": 8}}),
    "internvl": ("got_ocr2", {"size": SIZE}, "InternVL", {"image_seq_length": 4},
                 {"context_image_token": "<ctx>", "start_image_token": "<img>", "end_image_token": "</img>",
                  "video_token": "<video>"}, "<ctx>", {"image_seq_length": 4, "vision_feature_layer": -1,
                 "vision_config": {**SIGHT, "image_size": [32, 32], "patch_size": [8, 8]},
                 "text_config": {"model_type": "qwen2"}}),
    "paligemma": ("siglip", {"size": SIZE, "image_seq_length": 16}, "PaliGemma", {}, ("<image>",), "",
                  {"projection_dim": 16, "text_config": {"model_type": "gemma"},
                   "vision_config": {"model_type": "siglip_vision_model", "projection_dim": 16, **SIGHT}}),
    "mllama": ("mllama", {"size": SIZE, "max_image_tiles": 2}, "Mllama", {}, ("<|image|>", "<|python_tag|>"),
               "<|image|>", {"text_config": {"cross_attention_layers": [1]}, "vision_config": {**SIGHT,
               "attention_heads": 2, "num_global_layers": 1, "max_num_tiles": 2, "vision_output_dim": 32,
               "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}}),
    "blip-2": ("blip", {"size": SIZE}, "Blip2", {"num_query_tokens": 4}, ("<image>",), "",
               {"num_query_tokens": 4, "vision_config": SIGHT, "qformer_config": QFORMER, "text_config": OPT}),
    "instructblip": ("blip", {"size": SIZE}, "InstructBlip", {"num_query_tokens": 4}, ("<image>",), "",
                     {"num_query_tokens": 4, "vision_config": SIGHT, "qformer_config": {**QFORMER, "vocab_size": 400},
                      "text_config": OPT}),
    # encoded alone: which tiny model has as many image tokens as its processor says is not tried
    "janus": ("janus", {"size": SIZE}, "Janus", {"num_image_tokens": 4}, {"image_token": "<place>",
              "boi_token": "<boi>", "eoi_token": "<eoi>"}, "<place>", None),
    "aya_vision": ("got_ocr2", {"size": SIZE}, "AyaVision", {"patch_size": 8, "img_size": 32}, ("<image>",
                   "<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>"), "<image>", None),
    "ovis2": ("ovis2", {"size": SIZE}, "Ovis2", {"image_seq_length": 4}, ("<image>", "<IMG_ATOM>"), "<image>", None),
    "deepseek_vl": ("deepseek_vl", {"size": SIZE}, "DeepseekVL", {"num_image_tokens": 4},
                    {"image_token": "<place>"}, "<place>", None),
}  # fmt: skip
MODELS = [name for name, parts in FAMILIES.items() if parts[-1] is not None]
ALWAYS = ("paligemma", "blip-2", "instructblip")  # that are not asked without an image
MISSING = {  # what of a family cannot be made without a package that is not there
    "PixtralProcessor": "Torchvision",
    "Lfm2VlImageProcessor": "Torchvision",
    "SmolVLMProcessor": "num2words",
}


def tokenizer(*special, **named):
    """Fit a tokenizer in which " Astana" is one token; the special tokens are known under their names."""
    made = tiny_tokenizer([f"{a} {b}" for a in ASKED for b in SAID] * 3, vocabulary=330)
    made.add_special_tokens({"additional_special_tokens": ["<|turn|>", *special, *named.values()]})
    for name, token in named.items():
        setattr(made, name, token)
        setattr(made, f"{name}_id", made.convert_tokens_to_ids(token))
    return made


def processor(name):
    """Make a processor of the PIL image processor and a tiny tokenizer; the half for videos is left out."""
    images, settings, kind, more, special, written, _ = FAMILIES[name]
    base = getattr(transformers, f"{kind}Processor")

    class WithoutVideos(base):
        def check_argument_for_proper_class(self, name, argument):
            return type(argument)

    source = importlib.import_module(f"transformers.models.{images}.image_processing_pil_{images}")
    wanted = inspect.signature(base.__init__).parameters
    more = dict(more)
    more |= {"video_processor": None} if "video_processor" in wanted else {}
    more |= {"qformer_tokenizer": tokenizer()} if "qformer_tokenizer" in wanted else {}
    more |= {"chat_template": TURNS.replace("IMAGE", written)} if written else {}
    own = tokenizer(**special) if isinstance(special, dict) else tokenizer(*special)
    return WithoutVideos(getattr(source, source.__all__[0])(**settings), own, **more)


def built(name, own):
    """Make a model with random weights, none of them 0, whose logits differ from token to token."""
    special, settings = FAMILIES[name][4], FAMILIES[name][-1]
    config = transformers.CONFIG_MAPPING[name]
    image = (
        next(iter(special.values()))
        if isinstance(special, dict)
        else "<|image_pad|>"
        if special == QWEN
        else special[0]
    )
    ids = {key: own.convert_tokens_to_ids(image) for key in ("image_token_id", "image_token_index")}
    ids |= {"vision_start_token_id": own.convert_tokens_to_ids(QWEN[0])} if special == QWEN else {}
    text = {**TEXT, **settings["text_config"], "vocab_size": len(own)}
    if "model_type" in text:
        text = transformers.CONFIG_MAPPING[text.pop("model_type")](**text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(config(**{**settings, "text_config": text}, **ids))
        for p in model.parameters():
            if p.ndim > 1 or not p.data.any():  # some begin at 1e-10, and gates begin shut
                p.data.normal_(0.0, 0.2)
    return model.eval()


def picture(seed, shape=(40, 52, 3)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8))


PICTURES = [picture(0), picture(1, (30, 30, 3)), picture(2, (24, 60, 3))]


# -- every family ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_begins_where_it_says_so(name):
    # catches: image tokens that are not counted, a prompt that keeps the template's space, an answer without its end
    made = processor(name)
    for image in [PICTURES[0]] if name in ALWAYS else [PICTURES[0], None]:
        one = encode(made, Question(ASKED[0], SAID[0], image))
        prompt, answer = (made.tokenizer.decode(part) for part in (one.ids[: one.prompt], one.ids[one.prompt :]))
        assert answer.strip() == "Astana<eos>"
        assert prompt.endswith("assistant:" if FAMILIES[name][5] else ("?\n" if name == "paligemma" else "?"))
        assert ("pixel_values" in one.image) == (image is not None)
        asked = encode(made, Question(ASKED[0], "", image))  # where an answer is not known it would begin there
        assert asked.ids == one.ids[: one.prompt]
        assert asked.prompt == one.prompt


@pytest.mark.parametrize("name", MODELS)
def test_a_family_is_read_and_asked(name):
    # catches: padding that is seen, images given to the wrong question, an answer that is seen before it is given
    made = processor(name)
    model = built(name, made.tokenizer)
    asked = [(ASKED[i % 2], PICTURES[i % 3]) for i in range(4)] + [(one, None) for one in ASKED if name not in ALWAYS]
    one, other = ([encode(made, Question(q, said, image)) for q, image in asked] for said in SAID)
    rows = read(model, one, pad=0, batch_size=3)
    for row, alone, twin in zip(rows, one, read(model, other, pad=0), strict=True):
        single = model(**{k: v for k, v in collate([alone], pad=0).items() if k != "labels"}, use_cache=False).logits
        expected = single[0].log_softmax(-1)[alone.prompt - 1 : -1].detach()
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(row[0], twin[0], rtol=0, atol=1e-4)  # its first token does not depend on the answer
    seen = read(model, [encode(made, Question(ASKED[0], SAID[0], PICTURES[1]))], pad=0)[0]
    assert float((seen[0] - rows[0][0]).abs().max()) > 1e-4  # the image is seen
    written = answers(model, made, one, most=5)
    assert written == [answers(model, made, [alone], most=5)[0] for alone in one]
    likeliest = [made.tokenizer.decode(int(row[0].argmax()), skip_special_tokens=True).strip() for row in rows]
    assert all(text.startswith(first) or "\ufffd" in first for text, first in zip(written, likeliest, strict=True))


@pytest.mark.parametrize("name", MISSING)
def test_families_that_cannot_be_made_here(name):
    # fails when one of them can: it belongs among the families then
    parts = (
        (
            None,
            tokenizer(
                **{f"{kind}_token": f"<{kind}>" for kind in ("image", "fake_image", "global_image", "end_of_utterance")}
            ),
            None,
        )
        if name == "SmolVLMProcessor"
        else ()
    )
    made = getattr(transformers, name)
    with pytest.raises(ImportError, match=MISSING[name]):
        made(*parts)


def test_an_answer_is_not_read_before_it_is_given():
    # catches: the two ways in which processors show an answer to the prompt: PaliGemma's prefix is read in both
    # directions, and InstructBLIP's Q-Former reads all of the text
    made = processor("paligemma")
    one = encode(made, Question(ASKED[0], SAID[0], PICTURES[0]))
    assert one.image["token_type_ids"][0].tolist() == [0] * one.prompt + [1] * (len(one.ids) - one.prompt)
    made = processor("instructblip")
    one, other = (encode(made, Question(ASKED[0], said, PICTURES[0])) for said in SAID)
    assert one.image["qformer_input_ids"].tolist() == other.image["qformer_input_ids"].tolist()


# -- text alone -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    return tokenizer()


@pytest.fixture(scope="module")
def chatty():
    made = tokenizer()
    made.chat_template = PLAIN
    return made


def test_running_text(plain):
    one = encode(plain, Question(ASKED[0], SAID[0]))
    assert plain.decode(one.ids) == "what is the capital? Astana<eos>"
    assert plain.decode(one.ids[one.prompt :]) == " Astana<eos>"
    assert one.image == {}
    assert plain.decode(encode(plain, Question("A:\n", "b")).ids) == "A:\nb<eos>"  # no second gap


def test_a_template_that_ends_in_a_space_makes_the_prompt_no_prefix(chatty):
    # catches: an answer that begins after the tokens of the prompt, which are not those that stand before it
    turns = [{"role": "user", "content": ASKED[0]}]
    asked = chatty.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    one = encode(chatty, Question(ASKED[0], SAID[0]))
    assert one.ids[: len(asked)] != tuple(asked)
    assert one.prompt == len(asked) - 1
    assert chatty.decode(one.ids[one.prompt :]) == " Astana\n<eos>"


@pytest.mark.parametrize("name", ["plain", "chatty"])
def test_a_language_model_is_read_and_asked(name, request):
    # catches: padding on the wrong side, labels on the prompt, penalties of the generation settings, a mode left behind
    made = request.getfixturevalue(name)
    model = tiny_llama(made, hidden=32, layers=2, heads=2)
    model.generation_config.repetition_penalty = 5.0
    model.train()
    one = [encode(made, Question(q, a)) for q in ASKED for a in SAID]
    rows, written = read(model, one, pad=0), answers(model, made, one, most=6)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    for row, each, text in zip(rows, one, written, strict=True):
        ids = torch.tensor([each.ids])
        torch.testing.assert_close(row, model(ids).logits[0].log_softmax(-1)[each.prompt - 1 : -1].detach())
        said = list(each.ids[: each.prompt])
        for _ in range(6):
            said.append(int(model(torch.tensor([said])).logits[0, -1].argmax()))
        assert made.decode(said[each.prompt :]).split("<eos>")[0].strip() == text
    assert answers(model, made, []) == []


def test_writing_ends_at_the_end_of_the_template_and_of_the_context(plain):
    # catches: a model that goes on after the turn, since its settings name another end; places beyond the last one
    made = tokenizer()
    made.chat_template = PLAIN + "{% if not add_generation_prompt %}<|turn|>{% endif %}"
    model = tiny_llama(made, hidden=32, layers=2, heads=2, context=32)
    ends = made.convert_tokens_to_ids("<|turn|>")
    one = encode(made, Question(ASKED[0], SAID[0]))
    assert one.ids[-1] == ends
    seen = {}
    model.generate = lambda **given: seen.update(given) or given["input_ids"]
    answers(model, made, [one], most=100)
    assert seen["eos_token_id"] == [made.eos_token_id, ends]
    assert seen["max_new_tokens"] == 32 - one.prompt


def test_questions_of_one_batch_are_of_one_kind():
    # catches: an image that is given to the question beside it, an order that is not that of the caller
    pixels = {"pixel_values": torch.ones(1, 3)}
    many = [EncodedQuestion((1,) * n, 1, image) for n, image in ((3, {}), (4, pixels), (5, {}), (3, pixels), (2, {}))]
    assert list(by_kind(many, 2)) == [[2, 0], [4], [1, 3]]


def test_collate_by_hand():
    # catches: labels on the prompt or on padding, images of other sizes, what has one value a token on the wrong side
    many = [
        EncodedQuestion((5, 6, 7), 2, {"pixels": torch.ones(1, 2, 3), "kind": torch.tensor([[4, 4, 4]])}),
        EncodedQuestion((8, 9), 1, {"pixels": torch.ones(2, 1, 4), "kind": torch.tensor([[3, 3]])}),
    ]
    right, left = collate(many, pad=1), collate(many, pad=1, left=True)
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 9, 1]]
    assert left["input_ids"].tolist() == [[5, 6, 7], [1, 8, 9]]
    assert right["labels"].tolist() == [[-100, -100, 7], [-100, 9, -100]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert right["kind"].tolist() == [[4, 4, 4], [3, 3, 0]]
    assert left["kind"].tolist() == [[4, 4, 4], [0, 3, 3]]
    assert right["pixels"].shape == (3, 2, 4)
    assert right["pixels"][0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0]]
    assert torch.equal(left["pixels"], right["pixels"])


# -- what is refused ------------------------------------------------------------------------------------------------


def refused(*args, **more):
    with pytest.raises(InputError) as error:
        encode(*args, **more)
    return str(error.value)


def test_an_image_for_a_model_of_text(plain):
    assert refused(plain, Question("a?", "b", PICTURES[0])) == (
        "question 'a?' with an image, for a model of text alone\n"
        "  accepted: a question without an image\n"
        "  to do:    leave it out, or take a model that reads images"
    )


def test_a_prompt_that_asks_for_an_image():
    made = processor("llava")
    assert refused(made, Question("<image> a?", "b")) == (
        "question '<image> a?' with <image> in its text and no image\n"
        "  accepted: text alone: the place of an image is added\n"
        "  to do:    take <image> out of the text and add the image"
    )
    assert refused(made, Question("a?", "<image>", PICTURES[0])).startswith("question 'a?' with <image> in its text\n")


def test_a_processor_that_needs_an_image():
    assert refused(processor("paligemma"), Question("a?", "b")) == (
        "question 'a?' without an image, which the processor refuses: "
        "`images` are expected as arguments to a `PaliGemmaProcessor` instance.\n"
        "  accepted: what the model's own processor takes\n"
        "  to do:    add or leave out the image"
    )


def test_a_template_of_text_alone_loses_the_image():
    made = processor("llava")
    made.chat_template = TURNS.replace("IMAGE", "")
    assert "which the processor refuses: The total number of <image> tokens" in refused(
        made, Question("a?", "b", PICTURES[0])
    )


def test_an_answer_is_not_cut_out_of_image_tokens():
    # catches: a prompt that ends inside the tokens of an image, and an answer that is to be learnt with the rest
    made = processor("llava")
    made.chat_template = (
        "{{ messages[0].content[1].text }}"
        "{% if not add_generation_prompt %} {{ messages[1].content[0].text }}{% endif %}<image>"
    )
    assert refused(made, Question("a?", "b", PICTURES[0])) == (
        "question 'a?' with image tokens in its answer\n"
        "  accepted: an answer after prompt and image\n"
        "  to do:    write a prompt, or take the model's own template"
    )


def test_nothing_before_the_answer(plain):
    assert refused(plain, Question("", "b")).splitlines()[0] == "question '' with nothing before its answer"


def test_nothing_is_cut_off(plain):
    # catches: an answer of which the model learns the beginning
    fits = len(encode(plain, Question("a?", "b")).ids)
    assert len(encode(plain, Question("a?", "b"), longest=fits).ids) == fits
    assert refused(plain, Question("a?", "b"), longest=fits - 1) == (
        f"question 'a?' with {fits} tokens\n"
        f"  accepted: at most {fits - 1}, the context of the model\n"
        "  to do:    shorten prompt or answer, or use a model with a longer context"
    )


def test_logits_that_are_no_numbers(plain):
    model = tiny_llama(plain, hidden=32, layers=2, heads=2)
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(InputError) as error:
        read(model, [encode(plain, Question("a?", "b"))], pad=0)
    assert str(error.value) == (
        "logits that are no numbers at question 0\n"
        "  accepted: finite logits\n"
        "  to do:    find where the model diverged, or take the edit off"
    )
