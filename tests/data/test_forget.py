"""Reading records, and what two sets may not share."""

import gzip
import json

import pytest

from upright.contract import InputError
from upright.data.forget import (
    Record,
    digest,
    fingerprint,
    read_records,
    refuse_overlap,
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
    assert found[2] == Record("q", "a", "2", before=(("system", "s"),))
    assert [r.id for r in found] == list("01234")


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
