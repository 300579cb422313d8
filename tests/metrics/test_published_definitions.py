"""Scores of records against the published definitions of OpenUnlearning, written anew, on a model in float64.

Named differences: zlib compresses the answer without white space at its ends; extraction strength is 0 and not 1 / n
where the last token is wrong.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from upright.data.forget import tofu_records
from upright.language.encoding import encode_all
from upright.language.evaluation import Speaker, score_records
from upright.language.pretraining import teach
from upright.models.tiny import tiny_llama, tiny_tokenizer

pytest.importorskip("transformers")
RECORDS = tofu_records()[:12]
K = 0.2


@pytest.fixture(scope="module")
def speaker():
    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in RECORDS], vocabulary=400)
    model = tiny_llama(tokenizer, hidden=24, layers=2, heads=2)
    with torch.random.fork_rng(devices=[]):
        teach(model, encode_all(tokenizer, RECORDS[:6]), epochs=30, batch_size=6, learning_rate=1e-2)
    return Speaker(model.double(), tokenizer, batch_size=5)


def labelled(speaker, record):
    """Ids and labels as that package has them: the answer and its end of sequence."""
    head = f"Question: {record.prompt}\nAnswer:"
    tokenizer = speaker.tokenizer
    before = [tokenizer.bos_token_id, *tokenizer(head, add_special_tokens=False)["input_ids"]]
    after = [*tokenizer(f" {record.answer}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return torch.tensor([before + after]), torch.tensor([[-100] * len(before) + after])


@torch.no_grad()
def published(speaker, record):
    """Loss, Min-k %, Min-k %++, exact memorisation and extraction strength of one record."""
    ids, labels = labelled(speaker, record)
    logits = speaker.model(input_ids=ids).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    )
    loss = float(losses.sum() / (labels != -100).sum())
    used = (labels[0] != -100).nonzero()[:-1, 0]  # without the end of sequence
    log_p = logits[0].log_softmax(-1)[used - 1]  # (n, V)
    own = log_p[torch.arange(len(used)), ids[0, used]].numpy()
    mean = (log_p.exp() * log_p).sum(-1)
    variance = (log_p.exp() * log_p.square()).sum(-1) - mean.square()
    scaled = (torch.tensor(own) - mean) / variance.clamp(min=1e-6).sqrt()
    take = max(1, int(len(own) * K))
    right = log_p.argmax(-1) == ids[0, used]
    first = next((k for k in range(len(right)) if bool(right[k:].all())), len(right) - 1)
    text = speaker.tokenizer.decode(ids[0, used].tolist(), skip_special_tokens=True)
    return {
        "mia_loss": -loss,
        "forget_probability": np.exp(-loss),
        "mia_min_k": np.sort(own)[:take].mean(),
        "mia_min_k_plus_plus": float(scaled.sort().values[:take].mean()),
        "exact_memorisation": float(right.double().mean()),
        "extraction_strength": 1 - first / len(right),
        "last": bool(right[-1]),
        "stripped": -loss / len(zlib.compress(text.strip().encode())),
    }


def test_scores_are_the_published_ones(speaker):
    """With the end of sequence among the tokens exact memorisation was 0.4056 where the published one is 0.3969."""
    found = score_records(speaker, RECORDS, side="forget", rouge=False, truth=False)
    wanted = [published(speaker, record) for record in RECORDS]
    for name in ("mia_loss", "forget_probability", "mia_min_k", "mia_min_k_plus_plus", "exact_memorisation"):
        np.testing.assert_allclose(found[name], [one[name] for one in wanted], atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["mia_zlib"], [one["stripped"] for one in wanted], atol=1e-6)
    strength = [one["extraction_strength"] if one["last"] else 0.0 for one in wanted]
    np.testing.assert_allclose(found["extraction_strength"], strength, atol=1e-6)
    assert len({round(one["exact_memorisation"], 3) for one in wanted}) > 4
    assert any(one["last"] for one in wanted)
    assert not all(one["last"] for one in wanted)
