"""What comes back when an unlearned model is handled: rounded, asked otherwise, or trained a little further.

For each attack of `upright.language.robustness` the mean probability of the forgotten answers with its interval, and,
with the model as it was before, the share of what was removed that came back.

A share above 0 is no proof that something was hidden. Relearning trains on one half of the records and scores the
other; where both halves are about one author, or in one style, the first half teaches part of the second. A model that
never saw any of them shows a share above 0 too. So a reference is attacked in the same way, and its probability after
the attack stands beside that of the model: what the model shows beyond it is what the attack brought back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upright.data.forget import Record
from upright.language.encoding import refuse_mismatch
from upright.language.evaluation import Speaker
from upright.language.intake import Inputs
from upright.language.measures import LEAST, aggregate
from upright.language.robustness import recovered_share, robustness
from upright.models.hub import load_language_model

__all__ = ["hardened"]

_SCORE = "forget_probability"


def hardened(
    given: Inputs, *, before: Path | None = None, steps: int = 10, learning_rate: float = 1e-4, seed: int = 0
) -> dict[str, Any]:  # fmt: skip
    """Attack a model and say what it knows after each attack.

    Parameters
    ----------
    given : Inputs
        Model and records; the model is left as it was.
    before : path, optional
        Folder of the model before unlearning: without it no share is stated.
    steps, learning_rate
        Of relearning. More or larger steps bring back more of any model: quote them with the numbers.
    seed : int

    Returns
    -------
    dict
        ``settings``, and by attack ``probability`` (value, low, high, n; None with fewer than five records) and
        ``recovered`` (None where it is not defined) and ``reference``, the probability of the reference after the same
        attack (None without one).
    """
    speaker, reference = given.speaker, given.reference
    options: dict[str, Any] = {
        "retain": given.retain or None, "steps": steps, "learning_rate": learning_rate,
        "batch_size": speaker.batch_size, "rouge": False, "seed": seed,
    }  # fmt: skip
    found = robustness(speaker, given.forget, **options)
    other = {} if reference is None else robustness(reference, given.forget, **options)
    original = None if before is None else _known(before, given.forget, speaker)
    level = other["none"][_SCORE] if other else None
    rows = {}
    for attack, values in found.items():
        own = values[_SCORE]
        share = float("nan") if original is None else recovered_share(original, found["none"][_SCORE], own, level)
        rows[attack] = {
            "probability": _mean(own, given.forget, seed),
            "recovered": None if np.isnan(share) or len(own) < LEAST else share,
            "reference": _mean(other[attack][_SCORE], given.forget, seed) if other else None,
        }  # fmt: skip
    return {"settings": {"relearning_steps": steps, "relearning_rate": learning_rate, "bits": 4}, "attacks": rows}


def _mean(values: Any, records: Sequence[Record], seed: int) -> Any:
    """Mean with its interval; both models meet the same draws of records."""
    return aggregate({_SCORE: values}, seed=seed, authors=[r.author for r in records])[_SCORE]


def _known(folder: Path, records: Sequence[Record], speaker: Speaker) -> Any:
    """Probabilities under the model before unlearning."""
    model, tokenizer = load_language_model(folder)
    refuse_mismatch(speaker.tokenizer, speaker.model, reference=tokenizer)
    other = Speaker(model, tokenizer, template=speaker.template, batch_size=speaker.batch_size)
    return np.exp(-other.read(records).mean_nll)
