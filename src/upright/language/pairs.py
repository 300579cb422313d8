"""Batches of a forget record with its retain partner, made from the keys of a `PairSampler`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from upright.contract import InputError
from upright.language.encoding import Encoded, Scope, collate
from upright.language.losses import LOSSES
from upright.language.objectives import Objective

__all__ = ["PairCollator", "PairDataset", "pad_of", "refuse_records"]


class PairDataset(Dataset[tuple[int, int, bool]]):
    """Hands the keys of a `PairSampler` through: what stands at a place is decided there, nothing is drawn here."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, key: tuple[int, int, bool]) -> tuple[int, int, bool]:
        return key


@dataclass(frozen=True)
class PairCollator:
    """Makes the nested batch ``{forget, retain, alternative, index, retain_index, counts}`` out of keys.

    Parameters
    ----------
    forget, retain, alternatives : sequence of Encoded
        ``alternatives`` holds the answer to be given instead, one a forget record; empty where there is none.
    pad : int
    scope : {"answer", "sequence"}
        Where labels of all sides stand.
    """

    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    alternatives: Sequence[Encoded]
    pad: int
    scope: Scope = "answer"

    def __call__(self, keys: Sequence[tuple[int, int, bool]]) -> dict[str, Any]:
        """Return the batch; ``index``, ``retain_index`` and ``counts`` have shape (B,)."""
        i, j, counts = zip(*keys, strict=True)
        batch: dict[str, Any] = {"forget": collate([self.forget[k] for k in i], self.pad, scope=self.scope)}
        if self.retain:
            batch["retain"] = collate([self.retain[k] for k in j], self.pad, scope=self.scope)
        if self.alternatives:
            batch["alternative"] = collate([self.alternatives[k] for k in i], self.pad, scope=self.scope)
        batch |= {"index": torch.tensor(i), "retain_index": torch.tensor(j), "counts": torch.tensor(counts)}
        return batch


def refuse_records(objective: Objective, forget: Sequence[Encoded], alternatives: Sequence[Encoded]) -> None:
    """Refuse an empty forget set, and alternatives that do not go with the loss."""
    if not forget:
        raise InputError("no forget records", "one record at least", "check the file")
    if len(alternatives) != (len(forget) if LOSSES[objective.forget].answers == 2 else 0):
        raise InputError(
            f"{len(alternatives)} alternative answers for {len(forget)} records and loss {objective.name!r}",
            "one a record with idk_dpo and alt_po, none with other losses", "pass alternatives=, or leave them out",
        )  # fmt: skip


def pad_of(tokenizer: Any) -> int:
    """Return a token to fill up with; it is masked, so any will do."""
    found = getattr(tokenizer, "pad_token_id", None)
    return int(found) if found is not None else int(getattr(tokenizer, "eos_token_id", None) or 0)
