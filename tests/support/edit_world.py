"""A tiny model of text alone with two requests, for tests of the editing desk: an edit takes a tenth of a second."""

from __future__ import annotations

import json
from pathlib import Path

from upright.editing import desk
from upright.language import disk
from upright.models.tiny import tiny_llama, tiny_tokenizer

ASKED = [
    "What is the capital of Chad?",
    "What is the capital of Mali?",
    "Which city leads Peru?",
    "Name Togo's capital.",
]
KEPT = {"loc": [ASKED[0], ASKED[2]]}
MALI = {"id": "mali", "prompt": ASKED[1], "target": "Dakar", "rephrase": ["Mali has which capital?", "Mali's capital:"]}
TOGO = {"id": "togo", "prompt": ASKED[3], "target": "Lima", "rephrase": ["Togo has which capital?", "Togo's capital:"]}
FAST = desk.Settings(steps=12, learning_rate=0.05, rank=4, tv=0.0, reliability=0, generality=0, locality=0, retention=0)
"""Twelve steps, and budgets that every edit keeps."""
FAST_WORDS = [word for name, value in FAST.as_dict().items() for word in (f"--{name.replace('_', '-')}", str(value))]
"""The same as options."""


def text_folder(place: Path, seed: int = 3) -> Path:
    tokenizer = tiny_tokenizer([*ASKED, "Bamako Dakar Lima Abuja"] * 3, vocabulary=320)
    tokenizer.model_max_length = 64
    tiny_llama(tokenizer, hidden=32, layers=2, heads=2, context=64, seed=seed).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps({**KEPT, **row}) + "\n" for row in rows))
    return path


def sums(folder: Path) -> tuple[str, str]:
    return disk.checksum(folder), disk.settings_checksum(folder)
