"""Preference pairs and negatives: every shape of file, what is refused, and blocks of whole prompts."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.data.forget import Record
from upright.data.preferences import (
    Pair,
    merge_copies,
    prompt_blocks,
    read_preferences,
    read_unpaired,
    records_of,
    refuse_leaks,
)

HH = Path(os.environ.get("UPRIGHT_DATA", "")) / "hh-rlhf" / "harmless-base-test.jsonl.gz"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(role, text):
    return {"role": role, "content": text}


ASK, GOOD, BAD = said("user", "How warm is it?"), said("assistant", "It is mild."), said("assistant", "No idea.")
EARLIER = [said("user", "Good day."), said("assistant", "Hello.")]
PAIR = {"prompt": "How warm is it?", "chosen": "It is mild.", "rejected": "No idea."}
PARTS = {**ASK, "content": [{"type": "text", "text": "How warm"}, {"type": "text", "text": " is it?"}]}


def parts(path):
    return [(p.prompt, p.chosen, p.rejected, p.before, p.kind) for p in read_preferences(path)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": ASK["content"], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},  # UltraFeedback
        {"prompt": [PARTS], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [ASK], "chosen": GOOD["content"], "rejected": BAD["content"]},
        {
            "chosen": "\n\nHuman: How warm is it?\n\nAssistant: It is mild.",
            "rejected": "\n\nHuman: How warm is it?\n\nAssistant: No idea.",
        },
    ],
)
def test_conversations_give_one_pair(tmp_path, row):
    # catches: an answer that holds the prompt again, a prompt that is lost, a role that is taken for another
    expected = ("How warm is it?", "It is mild.", "No idea.", (), "chat")
    assert parts(write(tmp_path / "p.jsonl", row)) == [expected]


def test_texts_give_one_pair(tmp_path):
    # catches: a common beginning that cuts a word in two, or that leaves nothing of the shorter answer
    path = write(
        tmp_path / "p.jsonl",
        PAIR,
        {"chosen": "Is it warm? It is not.", "rejected": "Is it warm? It is nothing."},
        {"chosen": "Is it warm? Yes", "rejected": "Is it warm? Yes and no "},
    )
    assert parts(path) == [
        ("How warm is it?", "It is mild.", "No idea.", (), "completion"),
        ("Is it warm? It is ", "not.", "nothing.", (), "completion"),
        ("Is it warm? ", "Yes", "Yes and no ", (), "completion"),
    ]


def test_a_transcript_keeps_what_was_said_before(tmp_path):
    # catches: an answer of an earlier turn that is taken for the last, turns of one speaker that lose one another
    text = "\n\nHuman: Good day.\n\nAssistant: Hello.\n\nHuman: How warm\n\nHuman: is it?\n\nAssistant: "
    (found,) = read_preferences(
        write(tmp_path / "p.jsonl", {"chosen": text + "It is mild.", "rejected": text + "No idea."})
    )
    assert found.before == (("user", "Good day."), ("assistant", "Hello."))
    assert (found.prompt, found.chosen, found.rejected) == ("How warm\n\nis it?", "It is mild.", "No idea.")
    row = {"prompt": [*EARLIER, ASK], "chosen": [GOOD], "rejected": [BAD]}
    (other,) = read_preferences(write(tmp_path / "q.jsonl", row))
    assert other.before == found.before
    assert other.cluster != Pair("0", "How warm is it?", "a", "b").cluster  # what was said before is part of the prompt


def test_tables_are_read_as_lines_are(tmp_path):
    # catches: a format that loses messages, ids or groups
    rows = [{**PAIR, "id": "a", "source": "x"}, {**PAIR, "prompt": "And now?", "id": "b", "source": "y"}]
    frame, chats = pl.DataFrame(rows), [{"id": "a", "prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}]
    frame.write_csv(tmp_path / "p.csv")
    frame.write_parquet(tmp_path / "p.parquet")
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    found = [read_preferences(tmp_path / name, group_key="source") for name in ("p.csv", "p.parquet", "p.jsonl.gz")]
    assert found[0] == found[1] == found[2] == read_preferences(frame, group_key="source")
    assert [(pair.id, pair.group) for pair in found[0]] == [("a", "x"), ("b", "y")]
    pl.DataFrame(chats).write_parquet(tmp_path / "c.parquet")
    assert read_preferences(tmp_path / "c.parquet") == read_preferences(write(tmp_path / "c.jsonl", *chats))


def test_clusters_limits_and_sides(tmp_path):
    # catches: a cluster that depends on the file, a limit that counts lines, a side that is the other
    rows = [PAIR, {**PAIR, "rejected": "Who knows?"}, {**PAIR, "prompt": "And now?"}, {**PAIR, "prompt_id": "k"}]
    found = read_preferences(write(tmp_path / "p.jsonl", *rows[:3], {**rows[3], "chosen": "Mild."}))
    assert [pair.id for pair in found] == list("0123")
    assert found[0].cluster == found[1].cluster == Pair("9", PAIR["prompt"], "a", "b").cluster != found[2].cluster
    assert found[3].cluster == "k"
    with pytest.warns(UserWarning, match=r"^1 pairs came before and count once: q.jsonl line 2 first$"):
        twice = read_preferences(write(tmp_path / "q.jsonl", PAIR, PAIR, rows[1], rows[2]), limit=2)
    assert [pair.rejected for pair in twice] == ["No idea.", "Who knows?"]
    assert records_of(found[:1], "chosen") == (
        Record(PAIR["prompt"], PAIR["chosen"], "0", found[0].cluster, kind="completion"),
    )
    assert records_of(found[:2], "rejected")[1].answer == "Who knows?"


ONE_PROMPT = ("two answers to one prompt", "correct the pair or leave it out")
WHOLE = ("a prompt and two answers with text", "leave the pair out or complete it")
SHAPES = "chosen and rejected, with or without prompt"
CHAT = "two or more messages with role and content, the last one by the assistant"


@pytest.mark.parametrize(
    ("row", "got", "accepted", "todo"),
    [
        ({**PAIR, "rejected": " It is mild. "}, "pair 1 with equal answers", "answers that differ",
         "leave the pair out"),
        ({**PAIR, "chosen": " "}, "pair 1 with an empty text under 'chosen'", *WHOLE),
        ({**PAIR, "prompt": ""}, "pair 1 with an empty text under 'prompt'", *WHOLE),
        ({"prompt": "q", "chosen": "a"}, "no 'rejected'", f"texts under {SHAPES}", "complete the record"),
        ({**PAIR, "chosen": 3}, "'chosen' of type int", f"texts under {SHAPES}", "complete the record"),
        ({"chosen": "Yes.", "rejected": "No."}, "answers without a common beginning, and no prompt",
         f"{SHAPES}; without it both begin with it", "add the prompt under 'prompt'"),
        ({"promt": "q", "chosen": "It is", "rejected": "It was"}, "key 'promt'", SHAPES, "call the prompt 'prompt'"),
        ({"question": "q", "chosen": "It is", "rejected": "It was"}, "key 'question'", SHAPES,
         "call the prompt 'prompt'"),
        ({"chosen": [ASK, GOOD], "rejected": [EARLIER[0], BAD]}, "different prompts", *ONE_PROMPT),
        ({"prompt": "Why?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "different prompts", *ONE_PROMPT),
        ({"prompt": [ASK], "chosen": [ASK], "rejected": [BAD]}, "messages that do not end with an answer", CHAT,
         "end the conversation with the answer"),
        ({**PAIR, "id": 7}, "id '7' again", "an id of its own for each pair", "correct the ids"),
        ({**PAIR, "source": None}, "no 'source'", "the key that says which group a pair belongs to", "add it to all"),
    ],
)  # fmt: skip
def test_bad_pairs_are_refused_with_their_line(tmp_path, row, got, accepted, todo):
    first = {"prompt": "First?", "chosen": "a", "rejected": "b", "id": 7, "source": "x"}
    path = write(tmp_path / "p.jsonl", first, row if "source" in row else {**row, "source": "x"})
    with pytest.raises(InputError) as caught:
        read_preferences(path, group_key="source")
    assert caught.value.args == (f"p.jsonl line 2: {got}", accepted, todo)


def test_files_without_a_pair_are_refused(tmp_path):
    for rows, got in ((["[1]"], "p.jsonl row 1: int"), ([], f"p.jsonl without a record; {SHAPES}")):
        (tmp_path / "p.jsonl").write_text("\n".join(rows))
        with pytest.raises(InputError) as caught:
            read_preferences(tmp_path / "p.jsonl")
        assert got.partition("; ")[0] == caught.value.got
        assert got.partition("; ")[2] in caught.value.accepted
    with pytest.raises(InputError) as caught:
        read_preferences(tmp_path / "p.jsonl", limit=0)
    assert caught.value.args == ("limit = 0", "an integer of at least 1", "raise it or leave it out")
    text = "\n\nHuman: Hm?\n\nAssistant: "
    with pytest.raises(InputError, match="1 transcripts and no pair"), pytest.warns(UserWarning, match="left out"):
        read_preferences(write(tmp_path / "p.jsonl", {"chosen": text + "a", "rejected": text + "a"}))


@pytest.mark.realdata
@pytest.mark.skipif(not HH.is_file(), reason="UPRIGHT_DATA has no hh-rlhf")
def test_the_harmless_pairs_of_hh_rlhf():
    # split here at the last question; catches: transcripts that are dropped, or cut at another turn. Of five pairs one
    # answer comes in two turns, so that all before its last turn is more than the prompt
    expected, left = [], 0
    with gzip.open(HH, "rt", encoding="utf-8") as lines:
        for line in lines:
            before, answers = zip(
                *(split_transcript(json.loads(line)[key]) for key in ("chosen", "rejected")), strict=True
            )
            if before[0] != before[1] or not all(answers) or answers[0] == answers[1]:
                left += 1
            else:
                expected.append((before[0], *answers))
    assert left == 4
    with pytest.warns(UserWarning, match="^4 transcripts left out as no pair: harmless-base-test.jsonl.gz line"):
        found = read_preferences(HH)
    assert [(pair.chosen, pair.rejected) for pair in found] == [texts[1:] for texts in expected]
    assert {pair.kind for pair in found} == {"chat"}
    assert {pair.before[0][0] for pair in found if pair.before} == {"user"}
    assert len({pair.cluster for pair in found}) == len({before for before, *_ in expected})


def split_transcript(text):
    """What stands before the answer, and the answer, whose turns are one."""
    before, _, rest = text.rpartition("\n\nHuman:")
    question, _, answer = rest.partition("\n\nAssistant:")
    turns = [turn.strip() for turn in answer.split("\n\nAssistant:")]
    return f"{before}|{question.strip()}", "\n\n".join(turns).strip()


# -- unpaired -------------------------------------------------------------------------------------------------------


def test_unpaired_answers_by_label(tmp_path):
    # catches: good answers that are unlearnt because a label was read as text
    rows = [{"prompt": "q", "completion": text, "label": text == "a"} for text in "abc"]
    pl.DataFrame(rows).write_csv(tmp_path / "u.csv")
    for path in (write(tmp_path / "u.jsonl", *rows), tmp_path / "u.csv"):
        found = read_unpaired(path)
        assert [[record.answer for record in side] for side in found] == [["b", "c"], ["a"]]
        assert [record.id for record in found.negatives] == ["1", "2"]
    bare = [{"messages": [ASK, BAD]}, {"question": "q", "answer": "b", "id": "z"}]
    found = read_unpaired(write(tmp_path / "v.jsonl", *bare))
    assert [record.id for record in found.negatives] == ["0", "z"]
    assert found.positives == ()


LABELS = "true (a good answer) or false (a bad one), for all or none"


@pytest.mark.parametrize(
    ("rows", "got", "accepted", "todo"),
    [
        ([{"label": "maybe"}], "u.jsonl line 1: 'label' is 'maybe'", LABELS, "correct it"),
        ([{"label": None}], "u.jsonl line 1: 'label' is None", LABELS, "correct it"),
        ([{"label": True}, {}], "u.jsonl line 2: no 'label'", LABELS, "correct it"),
        ([{}, {"label": True}], "u.jsonl line 2: 'label' is True", LABELS, "correct it"),
        ([{"label": True, "id": "x"}, {"label": False, "id": "y"}],
         "record x of positives is record y of negatives (1 shared)",
         "positives and negatives without a common record", "take the shared records out of negatives"),
    ],
)  # fmt: skip
def test_bad_labels_are_refused(tmp_path, rows, got, accepted, todo):
    with pytest.raises(InputError) as caught:
        read_unpaired(write(tmp_path / "u.jsonl", *({"prompt": "q", "completion": "a", **row} for row in rows)))
    assert caught.value.args == (got, accepted, todo)


def test_copies_are_merged_and_share_their_weight():
    # catches: a record that counts twice because it was logged twice, and weights that land on another row
    rows = [Record("q", "a", "0"), Record("r", "b", "1"), Record(" q", "a ", "2"), Record("s", "c", "3")]
    pool = merge_copies(rows)
    assert [record.id for record in pool.records] == ["0", "1", "3"]
    assert pool.copies.tolist() == [2, 1, 1]
    shared = pool.shared([3.0, 5.0, 0.0])
    assert shared.tolist() == [1.5, 5.0, 1.5, 0.0]


# -- sets -----------------------------------------------------------------------------------------------------------


def pairs_of(prompts):
    return [Pair(str(i), f"prompt {p}", "yes", f"no {i}") for i, p in enumerate(prompts)]


def test_what_stands_in_two_places_is_refused():
    # catches: a negative that is also preferred, in the objective or held out, and a prompt on both sides of a split
    objective, held_out = pairs_of([0, 1]), [Pair(f"h{k}", f"prompt {k}", "true", "false") for k in (5, 1, 1)]
    refuse_leaks(objective, held_out=held_out[:1], negatives=[Record("prompt 0", "no 0", "n")])
    with pytest.raises(InputError) as caught:
        refuse_leaks(objective, held_out=held_out)
    got = "pair 1 of the objective and pair h1 held out have one prompt (2 such pairs)"
    assert caught.value.args == (got, "no prompt in both sets", "split the pairs by prompt")
    for answer, prompt, own in (("yes ", 1, "1"), ("true", 5, "h5")):
        with pytest.raises(InputError) as caught:
            refuse_leaks(objective, held_out=held_out[:1], negatives=[Record(f"prompt {prompt}", answer, "n7")])
        assert caught.value.args == (
            f"record {own} of chosen is record n7 of negatives (1 shared)",
            "chosen and negatives without a common record",
            "take the shared records out of negatives",
        )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=2, max_size=40), st.integers(2, 8), st.integers(0, 99))
def test_blocks_hold_whole_prompts(prompts, blocks, seed):
    # catches: a prompt in two blocks, which makes them agree, a pair that is lost, a block without a pair
    distinct = len(set(prompts))
    if distinct < max(2, blocks):
        return
    found = prompt_blocks(pairs_of(prompts), blocks, seed=seed)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(prompts)))
    assert len(found) == blocks
    assert all(len(one) for one in found)
    assert sum(len({prompts[i] for i in one}) for one in found) == distinct
    largest = max(prompts.count(p) for p in prompts)
    assert max(map(len, found)) <= len(prompts) / blocks + largest


def test_blocks_depend_on_seed_and_prompts_alone():
    prompts = [0, 1, 1, 2, 3, 4, 5, 6]
    a, b = (prompt_blocks(pairs_of(prompts), 3, seed=seed) for seed in (0, 0))
    assert [one.tolist() for one in a] == [one.tolist() for one in b]
    others = [[one.tolist() for one in prompt_blocks(pairs_of(prompts), 3, seed=seed)] for seed in range(1, 6)]
    assert any(other != [one.tolist() for one in a] for other in others)


@pytest.mark.parametrize(
    ("prompts", "got", "accepted", "todo"),
    [
        ([3, 3, 3], "3 pairs of 1 prompt", "pairs of two prompts at least", "add pairs of other prompts"),
        ([0, 1, 2, 2, 4], "4 prompts for 8 blocks", "8 prompts at least",
         "add pairs of other prompts, or take blocks=4"),
    ],
)  # fmt: skip
def test_too_few_prompts_are_refused(prompts, got, accepted, todo):
    with pytest.raises(InputError) as caught:
        prompt_blocks(pairs_of(prompts))
    assert caught.value.args == (got, accepted, todo)
