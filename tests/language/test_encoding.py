"""Records as tokens."""

import pytest
import torch

from upright.contract import InputError
from upright.data.forget import Record, tofu_records
from upright.language.encoding import (
    collate,
    encode,
    encode_all,
    length_batches,
    prompt_ids,
    refuse_mismatch,
    template_of,
)
from upright.models.tiny import tiny_llama, tiny_tokenizer

RECORDS = tofu_records()[:6]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer([f"{r.prompt} {r.answer}" for r in RECORDS], vocabulary=400)


def test_prompt_answer_and_end_come_back_as_text(tokenizer):
    # a border that moves, or an end that is lost, changes what is scored
    for record in RECORDS:
        one = encode(tokenizer, record)
        assert tokenizer.decode(one.ids[: one.start]) == f"<bos>Question: {record.prompt}\nAnswer:"
        assert tokenizer.decode(one.ids[one.start :]) == f" {record.answer}<eos>"
        assert one.answer_length == len(one.ids) - one.start


def test_the_border_does_not_move_with_the_answer(tokenizer):
    one, other = encode(tokenizer, RECORDS[0]), encode(tokenizer, RECORDS[0], answer="zzz")
    assert one.ids[: one.start] == other.ids[: other.start]
    assert encode(tokenizer, RECORDS[0], prompt="zzz").ids[: one.start] != one.ids[: one.start]


def test_chat_template_is_used_where_there_is_one(tokenizer):
    import copy

    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for m in messages %}[{{m.role}}]{{m.content}}{% endfor %}[assistant]"
    record = Record("q", "a", before=(("system", "s"),))
    one = encode(chat, record)
    assert chat.decode(one.ids[: one.start]) == "[system]s[user]q[assistant]"
    assert chat.decode(one.ids[one.start :]) == "a<eos>"
    assert template_of(chat, "plain") == "plain"
    with pytest.raises(InputError, match="chat template"):
        template_of(tokenizer, "chat")


def test_plain_text_starts_at_the_beginning(tokenizer):
    one = encode(tokenizer, Record("", "some text"))
    assert one.start == 1
    assert one.ids[0] == tokenizer.bos_token_id
    bare = tiny_tokenizer(["x"], vocabulary=259)
    bare.bos_token, bare.eos_token = None, None
    with pytest.raises(InputError, match="without a prompt"):
        prompt_ids(bare, Record("", "x"))


def test_too_long_is_refused_and_never_cut(tokenizer):
    n = len(encode(tokenizer, RECORDS[0]).ids)
    assert len(encode(tokenizer, RECORDS[0], context=n).ids) == n
    with pytest.raises(InputError, match=f"record 0 with {n} tokens"):
        encode_all(tokenizer, RECORDS, context=n - 1)
    with pytest.raises(InputError, match="no records"):
        encode_all(tokenizer, [])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("scope", ["answer", "sequence"])
def test_collate_puts_labels_on_the_scope_alone(tokenizer, side, scope):
    # one place off, and a prompt token is trained on or an answer token is not
    batch = encode_all(tokenizer, RECORDS)
    out = collate(batch, 0, scope=scope, side=side)
    for row, one in enumerate(batch):
        real = out["attention_mask"][row].bool()
        assert out["input_ids"][row][real].tolist() == list(one.ids)
        assert out["position_ids"][row][real].tolist() == list(range(len(one.ids)))
        labels = out["labels"][row][real].tolist()
        first = one.start if scope == "answer" else 1
        assert labels == [-100] * first + list(one.ids[first:])
        assert (out["labels"][row][~real] == -100).all()
    with pytest.raises(InputError, match="width"):
        collate(batch, 0, width=3)


def test_length_batches_are_a_permutation(tokenizer):
    batch = encode_all(tokenizer, RECORDS)
    found = length_batches(batch, 4)
    assert sorted(i for b in found for i in b) == list(range(6))
    assert [len(b) for b in found] == [4, 2]
    lengths = [len(batch[i].ids) for b in found for i in b]
    assert lengths == sorted(lengths, reverse=True)
    with pytest.raises(InputError, match="batch size"):
        length_batches(batch, 0)


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    # ids beyond the embedding would end in an index error deep inside the model
    model = tiny_llama(tokenizer, hidden=16, layers=1, heads=2)
    refuse_mismatch(tokenizer, model, reference=tokenizer)
    wide = tiny_tokenizer([r.answer for r in tofu_records()[:60]], vocabulary=600)
    with pytest.raises(InputError, match="embeddings for 400"):
        refuse_mismatch(wide, model)
    other = tiny_tokenizer(["quite other words than those"] * 3, vocabulary=280)
    with pytest.raises(InputError, match="another tokenizer"):
        refuse_mismatch(tokenizer, model, reference=other)


def test_padding_on_either_side_gives_the_same_logits(tokenizer):
    # positions that count the padding would shift the rotary embedding
    model = tiny_llama(tokenizer, hidden=16, layers=2, heads=2, context=256).double()
    batch = encode_all(tokenizer, RECORDS)
    found = []
    for side in ("right", "left"):
        out = collate(batch, 0, side=side, width=max(len(e.ids) for e in batch) + 3)
        labels = out.pop("labels")
        with torch.no_grad():
            logits = model(**out).logits
        found.append(torch.stack([logits[i][labels[i] != -100].sum() for i in range(len(batch))]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
