"""A text model of a few thousand parameters, and one edit of it with questions to keep."""

from __future__ import annotations

import torch

from upright.editing.environments import Environments
from upright.editing.prompts import Question
from upright.models.tiny import tiny_llama, tiny_tokenizer

PROMPT = "What is the capital of Nigeria?"
TRAIN = {
    "edit": (Question(PROMPT, "Abuja"),),
    "text": (Question("Name the capital of Nigeria.", "Abuja"), Question("Nigeria: which city?", "Abuja")),
    "unrelated_text": (
        Question("What is the capital of Italy?", "Rome"),
        Question("Name the capital of Peru.", "Lima"),
    ),
}


def text_model(seed=0):
    """A fresh model in float64 with its tokenizer."""
    words = [q.prompt + " " + q.answer for some in TRAIN.values() for q in some]
    tokenizer = tiny_tokenizer(words * 4, vocabulary=300)
    return tiny_llama(tokenizer, hidden=16, layers=2, heads=2, context=64, seed=seed).to(torch.float64), tokenizer


def given(**changes):
    train = {**TRAIN, **changes}
    return Environments({name: some for name, some in train.items() if some}, {})
