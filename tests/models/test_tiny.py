"""The small language model, and loading from folders."""

import json

import pytest
import torch

from upright.contract import InputError
from upright.data.forget import tofu_records
from upright.models.hub import load_language_model
from upright.models.tiny import tiny_llama, tiny_tokenizer

pytest.importorskip("transformers")

TEXTS = [f"{r.prompt}\n{r.answer}" for r in tofu_records()[:800]]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(TEXTS)


def test_half_a_million_parameters_and_no_unknown_text(tokenizer):
    model = tiny_llama(tokenizer)
    assert 450_000 < sum(p.numel() for p in model.parameters()) < 600_000
    text = "Nothing of this stood there: Škvorecký, 東京, 😀\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_seed_gives_the_same_weights_and_leaves_the_global_stream(tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    one, other = (tiny_llama(tokenizer, hidden=16, layers=1, heads=2, seed=3) for _ in range(2))
    torch.testing.assert_close(torch.rand(2), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    third = tiny_llama(tokenizer, hidden=16, layers=1, heads=2, seed=4)
    assert not torch.equal(next(one.parameters()), next(third.parameters()))


def test_a_small_vocabulary_is_refused():
    with pytest.raises(InputError, match="vocabulary = 258"):
        tiny_tokenizer(["x"], vocabulary=258)


def test_a_folder_comes_back_bit_for_bit(tokenizer, tmp_path):
    model = tiny_llama(tokenizer, hidden=16, layers=1, heads=2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, words = load_language_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert words.get_vocab() == tokenizer.get_vocab()
    assert not again.training


@pytest.mark.parametrize(("defect", "word"), [
    ("folder", "no folder"), ("config", "without config.json"), ("json", "no JSON"), ("code", "code of its own"),
    ("weights", r"without \*.safetensors"), ("tokenizer", "does not load"), ("torn", "does not load"),
])  # fmt: skip
def test_bad_folders_are_refused_in_three_parts(tokenizer, tmp_path, defect, word):
    place = tmp_path / "m"
    if defect != "folder":
        tiny_llama(tokenizer, hidden=16, layers=1, heads=2).save_pretrained(place)
        tokenizer.save_pretrained(place)
    config = place / "config.json"
    if defect == "config":
        config.unlink()
    elif defect == "json":
        config.write_text("{")
    elif defect == "code":
        config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModel": "x.Y"}}))
    elif defect == "weights":
        (place / "model.safetensors").unlink()
    elif defect == "tokenizer":
        (place / "tokenizer.json").write_text("{")
    elif defect == "torn":
        weights = place / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=word) as caught:
        load_language_model(place)
    assert caught.value.accepted
    assert caught.value.todo
    assert str(tmp_path) not in str(caught.value)
