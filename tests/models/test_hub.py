"""Folders of models that can be edited: which classes read them, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from upright.contract import InputError

pytest.importorskip("transformers")

from upright.editing.prompts import Question, encode, read
from upright.models.hub import load_editable
from upright.models.tiny import tiny_llama, tiny_llava, tiny_tokenizer

WORDS = ["The capital of Chad is N'Djamena.", "What is the capital of Mali?"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer(WORDS, vocabulary=300)
    tiny_llama(tokenizer, hidden=16, layers=1, heads=2).save_pretrained(place / "text")
    tokenizer.save_pretrained(place / "text")
    model, processor = tiny_llava(tiny_tokenizer(WORDS, vocabulary=300), image=16, vision_hidden=16, vision_layers=1,
                                  hidden=16, layers=1, heads=2)  # fmt: skip
    model.save_pretrained(place / "llava")
    processor.save_pretrained(place / "llava")
    return place, model, processor


@pytest.mark.parametrize("kind", ["text", "llava"])
def test_what_was_saved_answers_as_before(home, kind):
    """Catches weights that are drawn anew: the causal class does not know the names of an image-text model."""
    place, model, processor = home
    again, words = load_editable(place / kind)
    assert not again.training
    assert getattr(words, "tokenizer", words).pad_token_id is not None
    asked = Question("Which country?", "Chad", Image.new("RGB", (9, 9), "red") if kind == "llava" else None)
    own = read(again, [encode(words, asked)], pad=0)[0]
    assert torch.isfinite(own).all()
    if kind == "llava":
        assert torch.equal(own, read(model, [encode(processor, asked)], pad=0)[0])
    else:
        assert not hasattr(words, "image_processor")


def _no_processor(place):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (place / name).unlink(missing_ok=True)


def _code(place):
    config = place / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModel": "x.Y"}}))


def _encoder(place):
    config = place / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "is_encoder_decoder": True}))


def _adapter(place):
    (place / "config.json").rename(place / "adapter_config.json")


def _pickled(place):
    (place / "model.safetensors").rename(place / "pytorch_model.bin")


def _torn(place):
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


BAD = [
    (_code, "m, a model with code of its own", "a class of transformers", "convert it: no such code is run"),
    (_encoder, "m, an encoder-decoder (llava)", "a decoder alone", "take another model"),
    (_pickled, "m without *.safetensors", "weights as safetensors",
     "save the model again with save_pretrained; pickled weights are not read"),
    (_adapter, "m, an adapter without its base", "the folder of a whole model",
     "merge the adapter into its base, then edit that"),
    (_torn, "m, which does not load: ", "an image-text model with its processor",
     "load it with transformers first, then save it again"),
    (_no_processor, "m, which does not load: Can't load image processor for 'm'", "an image-text model with its "
     "processor", "load it with transformers first, then save it again"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "got", "accepted", "todo"), BAD)
def test_bad_folders_of_image_text_models(home, tmp_path, spoil, got, accepted, todo):
    place = tmp_path / "m"
    shutil.copytree(home[0] / "llava", place)
    spoil(place)
    with pytest.raises(InputError) as caught:
        load_editable(place)
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.got.startswith(got)  # after that what the library says
    assert (caught.value.accepted, caught.value.todo) == (accepted, todo)
