"""Teaching texts to a model: plain next-token training, for models that are made to be unlearnt and for references.

    minimise  -(1 / sum_i n_i) sum_i sum_t log p(x_it | x_i,<t)

with AdamW, a linear warm-up over 50 steps, a cosine down to a twentieth of the learning rate, and gradients clipped at
norm 1. The order of records is a function of the seed and the epoch alone.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from upright.contract import InputError, stream
from upright.data.forget import Record
from upright.language.encoding import Encoded, collate
from upright.language.sampling import shuffle_order

__all__ = ["read_passages", "teach"]

_FOLDER, _ARCHIVES = "public-domain-texts", ("state_union.zip", "inaugural.zip")
_WORDS, _EVERY = 64, 10  # words of a passage; one speech of ten is held out


def read_passages(data_dir: str | None = None) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Read public-domain speeches: passages to train on, and passages of other speeches to measure by.

    Parameters
    ----------
    data_dir : str, optional
        Looked at before ``UPRIGHT_DATA``; ``public-domain-texts`` below it holds ``state_union.zip`` and
        ``inaugural.zip``, the corpora of these names of nltk_data.

    Returns
    -------
    read, held_out : tuple of Record
        Texts of 64 words, the speech as their author. Every tenth speech is held out as a whole; a rest of fewer words
        is left out.

    Raises
    ------
    InputError
        When no folder holds both files, or one is no archive of texts.
    """
    roots = [Path(root).expanduser() for root in (data_dir, os.environ.get("UPRIGHT_DATA")) if root]
    places = [root / _FOLDER for root in roots]
    place = next((p for p in places if all((p / name).is_file() for name in _ARCHIVES)), None)
    wanted = f"{' and '.join(_ARCHIVES)} in {_FOLDER} below --data-dir or UPRIGHT_DATA"
    if place is None:
        todo = "put the corpora state_union and inaugural of nltk_data there, or leave pretrain at 0"
        raise InputError("no text to pretrain on", wanted, todo)
    speeches: dict[str, list[str]] = {}
    for name in _ARCHIVES:
        try:
            with zipfile.ZipFile(place / name) as archive:
                members = sorted(one for one in archive.namelist() if one.endswith(".txt"))
                speeches |= {one: archive.read(one).decode("utf-8", "replace").split() for one in members}
        except zipfile.BadZipFile:
            raise InputError(f"{name}, which is no archive", wanted, "get the file again") from None
    parts: tuple[list[Record], list[Record]] = ([], [])
    for i, (speech, words) in enumerate(speeches.items()):
        for start in range(0, len(words) - _WORDS + 1, _WORDS):
            text = " ".join(words[start : start + _WORDS])
            parts[i % _EVERY == _EVERY - 1].append(Record("", text, f"{speech}/{start}", speech, kind="text"))
    return tuple(parts[0]), tuple(parts[1])


def teach(
    model: Any,
    encoded: Sequence[Encoded],
    *,
    epochs: int,
    batch_size: int = 16,
    learning_rate: float = 5e-3,
    seed: int = 0,
    advance: Callable[[int], object] | None = None,
) -> list[float]:
    """Train a model on records in place, on the device where it is.

    Parameters
    ----------
    model : PreTrainedModel
        Left in evaluation mode.
    encoded : sequence of Encoded
    epochs, batch_size : int
    learning_rate : float
    seed : int
        Of the order.
    advance : callable, optional
        Called with 1 after every epoch.

    Returns
    -------
    list of float
        Mean loss per token of each epoch, as it was during training.

    Raises
    ------
    InputError
        When there is no record, or the loss stops being a number.
    """
    if not encoded or epochs < 1 or batch_size < 1:
        got = f"{len(encoded)} records, {epochs} epochs, batches of {batch_size}"
        raise InputError(got, "at least one of each", "check the settings")
    steps = epochs * math.ceil(len(encoded) / batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.95))

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / 50) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    curve, device = [], next(model.parameters()).device
    model.train()
    for epoch in range(epochs):
        order = shuffle_order(len(encoded), stream(seed, "teach"), epoch).tolist()
        total, count = 0.0, 0
        for start in range(0, len(order), batch_size):
            batch = collate([encoded[i] for i in order[start : start + batch_size]], 0, scope="sequence")
            batch = {name: one.to(device) for name, one in batch.items()}
            loss = model(**batch).loss
            if not torch.isfinite(loss):
                raise InputError(
                    f"a loss of {float(loss.detach())} in epoch {epoch}", "a finite loss", "lower the learning rate"
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            n = int((batch["labels"] != -100).sum())
            total, count = total + float(loss.detach()) * n, count + n
        curve.append(total / count)
        if advance is not None:
            advance(1)
    model.eval()
    return curve
