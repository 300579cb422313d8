"""Families of models, tiny and with random weights: read as one token at a time would be, written, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from upright.contract import InputError
from upright.data.forget import Record
from upright.language.evaluation import Speaker
from upright.models.tiny import tiny_tokenizer

transformers = pytest.importorskip("transformers")

RECORDS = [
    Record("Where does Ada live?", "In Riga, by the sea.", id="ada"),
    Record("What did Bo write?", "A long poem.", id="bo"),
    Record("Who is the father of Cy, the cook of Turku?", "A baker called Olli.", id="cy"),
]
SHARED = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
STATE = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4}
FAMILIES = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "Phi": {"num_key_value_heads": 2},
    "Phi3": {},
    "GPT2": {},
    "GPTNeo": {"attention_types": [[["global", "local"], 1]]},
    "GPTJ": {"rotary_dim": 4},
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "Bloom": {},
    "Mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 128},
    "Falcon": {},
    "StableLm": {},
    "Cohere": {},
    "Olmo2": {},
    "Granite": {"logits_scaling": 4.0},
    "Mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "OpenAIGPT": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "Mamba": {"state_size": 4},
    "Mamba2": {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "Rwkv": {"attention_hidden_size": 16, "context_length": 128},
    "FalconH1": {"mamba_d_ssm": 32, "mamba_chunk_size": 16, "head_dim": 8, **STATE},
}
REFUSED = {
    "Bert": "reads the tokens that it should predict",
    "Roberta": "reads the tokens that it should predict",
    "T5": "an encoder-decoder",
}
SINGLE = ("Gemma2", "Bloom", "Mpt", "Mixtral")  # that do not compute in float64


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer([f"{r.prompt} {r.answer}" for r in RECORDS], vocabulary=280)


def built(name, tokenizer, **more):
    """Make a model whose logits differ from token to token."""
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), **{**SHARED, **more})
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.from_config(config).eval()
    for p in model.parameters():
        p.data.mul_(4.0 if p.ndim > 1 else 1.0)
    return model if name in SINGLE else model.double()


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0].double()


@pytest.mark.filterwarnings("ignore")  # of models without their fast kernels
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_read_and_written_as_by_hand(name, tokenizer):
    """Mamba and RWKV crashed in writing answers: they keep a state and no keys and values."""
    model = built(name, tokenizer, **FAMILIES[name])
    speaker = Speaker(model, tokenizer, batch_size=3)
    found, written = speaker.read(RECORDS), speaker.write(RECORDS, max_new_tokens=4)
    for i, one in enumerate(speaker.encode(RECORDS)):
        rows = logits_of(model, one.ids).log_softmax(-1)
        own = [float(rows[t - 1, one.ids[t]]) for t in range(one.start, len(one.ids))]
        np.testing.assert_allclose(found.log_probs[i, : len(own)], own, atol=5e-6 if name in SINGLE else 6e-9)
        ids = list(one.ids[: one.start])
        while len(ids) < one.start + 4 and (token := int(logits_of(model, ids)[-1].argmax())) != 2:
            ids.append(token)
        assert written[i] == tokenizer.decode(ids[one.start :], skip_special_tokens=True).strip()


@pytest.mark.filterwarnings("ignore")  # of an encoder without a decoder's mask
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_causal_model_is_refused(name, tokenizer):
    """BERT was scored as if it forecast the tokens that it can see."""
    with pytest.raises(InputError, match=REFUSED[name]):
        Speaker(built(name, tokenizer), tokenizer)
