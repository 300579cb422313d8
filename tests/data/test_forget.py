"""Reading records, and what two sets may not share."""

import gzip
import json
from dataclasses import replace

import pytest

from upright.contract import InputError
from upright.data.forget import (
    Record,
    digest,
    fingerprint,
    read_records,
    refuse_overlap,
    refuse_similar,
    tofu_records,
    unique_records,
)


def _write(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n", encoding="utf-8")
    return path


def test_each_shape_gives_prompt_and_answer(tmp_path):
    # a shape that loses its prompt, or takes a wrong message for the answer, would train on something else
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    found = read_records(_write(
        tmp_path / "r.jsonl", {"question": "q", "answer": "a"}, {"prompt": "q", "completion": "a"}, {"messages": chat},
        {"prompt": chat[:2], "completion": chat[2:]}, {"text": "a"}, "",
    ))  # fmt: skip
    assert [(r.prompt, r.answer) for r in found] == [("q", "a")] * 4 + [("", "a")]
    assert found[2].before == (("system", "s"),)
    assert found[2] == Record("q", "a", "2", before=(("system", "s"),), kind="chat")
    assert [r.id for r in found] == list("01234")
    assert [r.kind for r in found] == ["question", "completion", "chat", "chat", "text"]
    assert len({digest(r) for r in found[:2]}) == 1  # the form is no part of what is to be forgotten


def test_a_message_of_parts_is_read(tmp_path):
    """A conversation whose content was a list of text parts was refused as one that does not end with an answer."""
    text = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = [{"role": "user", "content": text}, {"role": "assistant", "content": [{"type": "text", "text": "c"}]}]
    (found,) = read_records(_write(tmp_path / "r.jsonl", {"messages": chat}))
    assert (found.prompt, found.answer, found.kind) == ("ab", "c", "chat")
    chat[0]["content"] = [text[0], {"type": "image_url", "image_url": "x"}]
    with pytest.raises(InputError, match="a part of type 'image_url'"):
        read_records(_write(tmp_path / "s.jsonl", {"messages": chat}))


def test_the_key_that_records_have_in_common(tmp_path):
    """Records of one person counted as independent unless the key was called author."""
    rows = [{"text": "a", "person": 7}, {"text": "b", "person": 7}]
    assert [r.author for r in read_records(_write(tmp_path / "r.jsonl", *rows), cluster="person")] == ["7", "7"]
    with pytest.raises(InputError, match="line 2: no 'person'"):
        read_records(_write(tmp_path / "s.jsonl", rows[0], {"text": "b"}), cluster="person")


def test_gzip_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "a"}\n'))
    assert read_records(tmp_path / "r.jsonl.gz")[0].answer == "a"


@pytest.mark.parametrize(("rows", "word"), [
    ([], "without a record"), (["{"], "line 1"), (["[1]"], "row 1: int"), (["3"], "line 1: int"),
    ([{"question": "q", "anser": "a"}], "'anser'"),
    ([{"question": "q"}], "'answer'"), ([{"text": " "}], "empty answer"), ([{"messages": []}], "messages"),
    ([{"text": "a"}, {"messages": [{"role": "user", "content": "q"}]}], "line 2"), ([{"text": 3}], "type int"),
    ([{"question": "q", "answer": "a", "perturbed_answer": [""]}], "perturbed_answer"),
])  # fmt: skip
def test_bad_records_are_named(tmp_path, rows, word):
    with pytest.raises(InputError, match=word) as caught:
        read_records(_write(tmp_path / "r.jsonl", *rows))
    assert caught.value.accepted
    assert caught.value.todo
    assert str(tmp_path) not in str(caught.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "c.gz").write_bytes(b"no gzip")
    for name in ("a.jsonl", "b.jsonl", "c.gz", "."):
        with pytest.raises(InputError):
            read_records(tmp_path / name)


def test_overlap_is_refused_whatever_the_white_space():
    # a record in both sets would be pushed both ways, and neither would be said
    one, same = Record("q", "a", "7"), Record(" q", "a ", "9")
    with pytest.raises(InputError, match="record 7 of forget is record 9 of retain"):
        refuse_overlap(forget=[one], retain=[Record("x", "y"), same], holdout=[])
    refuse_overlap(forget=[one], retain=[Record("q", "b")])
    assert unique_records([one, same, Record("q", "b")]) == ([one, Record("q", "b")], 1)


PASSAGE = "Ada Berg was born in Riga by the sea and wrote nine long poems about bread."


@pytest.mark.parametrize(("one", "other"), [
    (Record("Who?", PASSAGE), Record("WHO?", PASSAGE.upper())), (Record("Who?", PASSAGE), Record("", PASSAGE.lower())),
    (Record("Who?", PASSAGE), Record("Tell me all of her life, in one sentence.", PASSAGE[:-1] + "!")),
    (Record("Ada Berg was born in Riga", "by the sea."), Record("", "ada berg was BORN in riga, by the sea")),
    (Record("", PASSAGE), Record("", PASSAGE.replace("bread", "breads"))), (Record("a", "b"), Record("A", "b!")),
])  # fmt: skip
def test_nearly_the_same_is_refused(one, other):
    """A retain file with all records in capitals was accepted: the desk trained to keep what it should remove."""
    sets = {"forget": [Record("x", "y"), replace(one, id="7")], "retain": [replace(other, id="9")], "holdout": []}
    with pytest.raises(InputError, match="record 7 of forget is nearly record 9 of retain"):
        refuse_similar(**sets)
    assert len(refuse_similar(allow=True, **sets)) == 1


def test_what_is_only_related_is_accepted():
    # catches short answers that are alike by chance, a common opening, and two questions of TOFU
    pairs = [("What is two plus two?", "four"), ("What is three plus one, or one plus three?", "four")]
    refuse_similar(forget=[Record(*pairs[0])], retain=[Record(*pairs[1])])
    refuse_similar(
        forget=[Record("", PASSAGE)], retain=[Record("", PASSAGE[:40] + "then moved to Turku and was a cook.")]
    )
    found = tofu_records()
    assert refuse_similar(forget=found[:100], retain=found[400:700], holdout=found[800:]) == []


def test_digests_do_not_run_together():
    assert digest(Record("ab", "c")) != digest(Record("a", "bc"))
    assert digest(Record("q", "a")) != digest(Record("q", "a", before=(("user", "x"),)))
    a, b = Record("q", "a"), Record("q", "b")
    assert fingerprint([a, b]) == fingerprint([b, a]) != fingerprint([a, a])


def test_bundled_tofu_is_whole():
    found = tofu_records()
    assert len(found) == 1000
    assert len({digest(r) for r in found}) == 1000
    authors = [r.author for r in found]
    assert all(authors.count(a) == 20 for a in set(authors))
    assert len(set(authors)) == 50
    assert all(r.paraphrases and len(r.perturbed) == 5 and r.other_prompt for r in found[:800])
    assert not set(authors[:800]) & set(authors[800:])
