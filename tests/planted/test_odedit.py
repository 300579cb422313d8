"""Planted defects of ODEdit: each check passes on the real code and is red with the defect."""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import edit_sample
from upright.editing import edits, environments, invariant, measures
from upright.editing.layers import sites
from upright.experiment.folders import ArmRun
from upright.maths.invariance import kernel_bandwidths, mmd2
from upright.tasks import edit as task

# -- checks -----------------------------------------------------------------------------------------------------------


def before_is_read_before():
    # an edit that wrecks the model keeps nothing
    t, run = task.Edit.tiny(0), ArmRun(None, 0, "x")
    model, _ = t.model(run)
    draw = torch.Generator().manual_seed(0)
    factors = {site.name: 9.0 * torch.randn(site.outputs, site.inputs, generator=draw) for site in sites(model)}
    wreck = SimpleNamespace(edits={name: edits.Edit(factors, {}) for name in t.given(run)}, before={})
    values = t.score(wreck, "valid", run).values
    assert np.nanmean([np.nanmean(values[name]) for name in ("text_locality", "image_locality", "no_image")]) < 0.5


def no_test_question_trains():
    # what an edit was trained with tells nothing of other words
    t, run = task.Edit.tiny(0), ArmRun(None, 0, "x")
    for own in t._of(run).given.values():
        seen = {environments.question_key(q) for q in own.train["text"]}
        assert not seen & {environments.question_key(q) for name in ("text", "joint") for q in own.test[name]}


def small_variation_is_no_aim():
    # spec T10: all-zero logits minimise every variation, so an edit counts by its target
    model, tokenizer = edit_sample.text_model()
    found = invariant.odedit(model, tokenizer, edit_sample.given(), steps=12, learning_rate=0.03, warmup=0)
    assert found.trace[-1]["reliability"] < 0.95 * found.trace[0]["reliability"]


def the_discrepancy_can_be_satisfied():
    # spec A11: with frozen bandwidths it falls as states approach; taken anew it has no scale and does not
    model, tokenizer = edit_sample.text_model()
    more = {"weights": (0.0, 0.0, 1.0), "tv": 0.0, "steps": 25, "learning_rate": 0.03, "target": 1.0}
    trace = invariant.odedit(model, tokenizer, edit_sample.given(), **more).trace
    assert trace[-1]["generality"] < 0.4 * trace[0]["generality"]


def no_hook_stays():
    model, tokenizer = edit_sample.text_model()
    invariant.odedit(model, tokenizer, edit_sample.given(), steps=2)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# -- defects ----------------------------------------------------------------------------------------------------------


def before_measured_after_the_edit(patch):
    real = measures.measure

    def late(model, processor, was, which=None):
        return real(model, processor, measures.before(model, processor, {which: was.given[which]}), which)

    patch.setattr(measures, "measure", late)


def a_test_paraphrase_in_training(patch):
    real = environments.environments

    def leaky(*args, **options):
        own = real(*args, **options)
        return dataclasses.replace(own, train={**own.train, "text": own.test["text"][:1]})

    patch.setattr(environments, "environments", leaky)


def variation_from_an_all_zero_collapse(patch):
    real = invariant._Risks._said

    def collapsed(self, part, omega):
        said, states = real(self, part, omega)
        return (0.0 * said).log_softmax(1), states

    patch.setattr(invariant._Risks, "_said", collapsed)


def bandwidths_taken_anew_each_step(patch):
    patch.setattr(invariant, "mmd2", lambda z, w, _: mmd2(z, w, kernel_bandwidths(z, w)))


def hooks_left_behind(patch):
    patch.setattr(edits, "removing", lambda handle: contextlib.nullcontext())


PAIRS = [
    (before_is_read_before, before_measured_after_the_edit),
    (no_test_question_trains, a_test_paraphrase_in_training),
    (small_variation_is_no_aim, variation_from_an_all_zero_collapse),
    (the_discrepancy_can_be_satisfied, bandwidths_taken_anew_each_step),
    (no_hook_stays, hooks_left_behind),
]


def test_defect_turns_its_check_red(pair, turns_red):
    turns_red(*pair)
