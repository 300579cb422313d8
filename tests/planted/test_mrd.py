"""Planted defects of MRD scoring: each check passes on the real code and is red with the defect."""

from __future__ import annotations

import math

import numpy as np
import torch

from upright.data.forget import tofu_records
from upright.language import difficulty
from upright.language.difficulty import score_difficulty
from upright.language.encoding import encode_all
from upright.language.engines import InPlaceEngine, checksum
from upright.language.noise import blocks, rows
from upright.language.reader import Reader
from upright.models.tiny import tiny_llama, tiny_tokenizer


def made(n=6):
    records = tofu_records()[:n]
    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in records], vocabulary=300)
    return tiny_llama(tokenizer, hidden=16, layers=1), encode_all(tokenizer, records)


# -- checks -----------------------------------------------------------------------------------------------------------


def opposite_changes_cancel():
    # spec 1.2: the absolute value stands outside the mean; a first-order term of either sign is no difficulty
    values = np.array([[1.0, 3.0], [-1.0, 3.0]])
    assert difficulty.reduce_probes(values, "antithetic")[0].tolist() == [0.0, 3.0]
    model, encoded = made()
    found = score_difficulty(model, encoded, sigma="rel:1e-2", probes=4, estimator="plain", check_scaling=False)
    np.testing.assert_array_equal(found.mrd, np.abs(found.signed))


def weights_are_the_same_bits():
    # spec 1.7.7
    model, encoded = made()
    before = checksum(dict(model.named_parameters()))
    score_difficulty(model, encoded, sigma="rel:1e-2", probes=2)
    assert checksum(dict(model.named_parameters())) == before


def answers_are_scored_where_they_stand():
    # -log p of each answer token given what stands before it, written out for one sample at a time
    model, encoded = made(3)
    found = score_difficulty(model, encoded, probes=1)
    for nll, one in zip(found.nll, encoded, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([one.ids])).logits[0].double()
        terms = [-float(logits[t - 1].log_softmax(0)[one.ids[t]]) for t in range(one.start, len(one.ids))]
        assert math.isclose(nll, sum(terms) / len(terms), rel_tol=1e-5)


# -- defects ----------------------------------------------------------------------------------------------------------


def absolute_value_inside_the_mean(patch):
    real = difficulty.reduce_probes
    patch.setattr(
        difficulty, "reduce_probes", lambda values, estimator: (np.abs(values).mean(0), *real(values, estimator)[1:])
    )


def restored_by_subtraction(patch):
    def subtract(self, *error):
        probe, scale = self.at
        for name, tensor in self.noisy_tensors.items():
            for first, last in blocks(tensor.shape):
                z = rows(self.seed, probe, name, tensor.shape, first, last, law=self.law)
                tensor[first:last].sub_(z, alpha=scale * self.sigmas[name])

    patch.setattr(InPlaceEngine, "__exit__", subtract)


def read_one_place_late(patch):
    real = Reader._rows

    def late(self, forward, inputs, place, target, moments):
        return real(self, forward, inputs, place + 1, target, moments)

    patch.setattr(Reader, "_rows", late)


PAIRS = [
    (opposite_changes_cancel, absolute_value_inside_the_mean),
    (weights_are_the_same_bits, restored_by_subtraction),
    (answers_are_scored_where_they_stand, read_one_place_late),
]


def test_defect_turns_its_check_red(pair, turns_red):
    turns_red(*pair)
