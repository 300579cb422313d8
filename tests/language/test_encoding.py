"""Records as tokens: forms, the border between prompt and answer, what is never cut or written otherwise."""

import copy

import pytest
import torch

from upright.contract import InputError
from upright.data.forget import Record, tofu_records
from upright.language.encoding import (
    collate,
    encode,
    encode_all,
    form_of,
    forms_of,
    length_batches,
    refuse_mismatch,
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


def with_chat(tokenizer, template="{% for m in messages %}[{{m.role}}]{{m.content}}{% endfor %}[assistant]"):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = template
    return chat


def parts_of(tokenizer, record, **options):
    one = encode(tokenizer, record, **options)
    return tokenizer.decode(one.ids[: one.start]), tokenizer.decode(one.ids[one.start :]), one.closed


def test_chat_template_is_used_where_there_is_one(tokenizer):
    record = Record("q", "a", before=(("system", "s"),))
    assert parts_of(with_chat(tokenizer), record) == ("[system]s[user]q[assistant]", "a<eos>", True)
    with pytest.raises(InputError, match="chat template"):
        form_of(tokenizer, record, "chat")


@pytest.mark.parametrize(("prompt", "answer", "said"), [
    ("The capital of France is", "Paris", "The capital of France is| Paris"),
    ("The capital of France is ", "Paris.", "The capital of France is |Paris."), ("Title\n", "a", "Title\n|a"),
    ("Title", "\n  a ", "Title|\n  a"), ("", " a text ", "|a text"),
])  # fmt: skip
def test_a_running_text_is_read_as_one(tokenizer, prompt, answer, said):
    """A completion was asked as 'Question: ... Answer: ...', a form in which no model holds it, and ended."""
    record = Record(prompt, answer, kind="completion" if prompt else "text")
    one = encode(tokenizer, record)
    assert not one.closed
    assert tokenizer.eos_token_id not in one.ids
    first = [] if prompt else [tokenizer.bos_token_id]
    assert list(one.ids) == [*first, *tokenizer(said.replace("|", ""))["input_ids"]]
    before, after = said.split("|")
    assert tokenizer.decode(one.ids[len(first) : one.start]) == before
    assert tokenizer.decode(one.ids[one.start :]) == after


def test_forms_of_every_kind(tokenizer):
    # catches a passage that is asked, messages that are lost in the raw form, and an own form that is not the first
    chat, turns = with_chat(tokenizer), (("user", "x"), ("assistant", "y"))
    for record, bare, template in (
        (Record("q", "a"), ("plain", "raw"), ("chat", "plain", "raw")),
        (Record("q", "a", kind="completion"), ("raw", "plain"), ("raw", "chat", "plain")),
        (Record("", "a", kind="text"), ("raw",), ("raw",)),
        (Record("q", "a", kind="chat", before=turns), ("plain",), ("chat", "plain")),
    ):
        assert forms_of(tokenizer, record) == bare
        assert forms_of(chat, record) == template
        assert form_of(chat, record) == template[0]
    assert form_of(chat, Record("", "a"), "plain") == "raw"
    with pytest.raises(InputError, match="messages before the prompt"):
        form_of(chat, Record("q", "a", before=turns), "raw")


def llama2_tokenizer(texts):
    """A tokenizer that puts a space before every text, as that of Llama 2 does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    inner.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    inner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("form", ["raw", "plain", "chat"])
@pytest.mark.parametrize("fast", [True, False])
def test_no_stray_space_before_an_answer(form, fast, monkeypatch):
    """Llama-2-style tokenizers wrote a second space before each answer, because it was tokenised by itself."""
    texts = [f"Question: {r.prompt}\nAnswer: {r.answer} [INST] Paris [/INST]" for r in RECORDS]
    own = with_chat(llama2_tokenizer(texts), "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role "
                    "== 'user' else ' ' + m.content + ' </s>' }}{% endfor %}")  # fmt: skip
    for record in RECORDS:
        one = encode(own, record, template=form)
        head = {"raw": record.prompt, "plain": f"Question: {record.prompt}\nAnswer:",
                "chat": f"[INST] {record.prompt} [/INST]"}[form]  # fmt: skip
        whole = own(f"{head} {record.answer}")["input_ids"]
        first = [own.bos_token_id] if form == "plain" else []
        assert list(one.ids) == [*first, *whole, *([own.eos_token_id] if form != "raw" else [])]
        alone = [*first, *own(head)["input_ids"]]
        assert list(one.ids[: len(alone)]) == alone  # joint and apart agree on the prompt
        assert set(own.convert_ids_to_tokens(one.ids[len(alone) : one.start])) <= {"\u2581"}  # of the template
    if not fast:  # one that gives no offsets finds the same border
        wanted = [encode(own, record, template=form) for record in RECORDS]
        monkeypatch.setattr(type(own), "is_fast", False)
        assert [encode(own, record, template=form) for record in RECORDS] == wanted


def test_what_a_tokenizer_cannot_write_is_refused():
    """A text of unknown tokens was scored as if those were its words."""
    with pytest.raises(InputError, match="record 3, which the tokenizer does not give back"):
        encode(llama2_tokenizer(["only a few letters"]), Record("", "\u96e8", id="3"))


def test_plain_text_starts_at_the_beginning(tokenizer):
    one = encode(tokenizer, Record("", "some text"))
    assert one.start == 1
    assert one.ids[0] == tokenizer.bos_token_id
    bare = tiny_tokenizer(["x"], vocabulary=259)
    bare.bos_token, bare.eos_token = None, None
    with pytest.raises(InputError, match="without a prompt"):
        encode(bare, Record("", "x"))


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
