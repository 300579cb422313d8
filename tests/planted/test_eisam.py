"""Planted defects of EISAM and of its task: each check passes on the real code and is red with the defect."""

from __future__ import annotations

import contextlib
import dataclasses

import torch

from upright.data.interactions import synthetic
from upright.data.sequences import joined, leave_last
from upright.experiment.folders import ArmRun
from upright.language.titles import TitleTrie
from upright.maths import sharpness, sharpness_optimiser
from upright.methods import eisam
from upright.models import sequential
from upright.models.tiny import tiny_tokenizer
from upright.tasks import sequence
from upright.tasks.sequence import NextInSequence

RUN = ArmRun(None, 0, "x")
TITLES = ["the cat sat", "a dog ran"]


def made(**settings):
    task = NextInSequence.tiny()
    config = eisam.EISAMConfig(learning_rate=0.01, batch_size=32, **settings)
    model = task.model(RUN)
    return task, config, model, eisam._optimiser(model, task, config, RUN)[0]


# -- checks ---------------------------------------------------------------------------------------------------------


def an_ascent_leaves_every_bit_of_the_weights():
    task, config, model, optimiser = made()
    first, second, *_ = task.batches(RUN, 0, 32)
    eisam._step(model, optimiser, config, first, None)  # gives a direction
    before = [p.detach().clone() for p in model.parameters()]
    optimiser.zero_grad()
    with optimiser.ascent():
        optimiser.penalty(*model.target_losses(*second[:2], masks=1)).backward()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def weights_have_mean_1_over_interactions():
    task = NextInSequence.tiny()
    for kind in ("relative", "rank", "tail_only", "power"):
        f = sharpness.item_weights(task.item_count, kind, 2.0)
        assert abs(float(f @ task.item_count / task.item_count.sum()) - 1.0) < 1e-9


def held_out_items_change_no_count():
    task = NextInSequence.tiny()
    assert int(task.item_count.sum()) == len(leave_last(synthetic(), seed=0).train) - task.n_users


def without_a_perturbation_both_passes_lose_the_same():
    # at rho = 0 the second pass stands at w: same masks, same losses
    task, config, model, optimiser = made(rho=0.0)
    batch, found, real = next(iter(task.batches(RUN, 0, 32))), [], model.target_losses

    def watched(*args, **more):
        losses, items = real(*args, **more)
        found.append(losses.detach())
        return losses, items

    model.target_losses = watched
    eisam._step(model, optimiser, config, batch, None)
    assert torch.equal(*found)


def only_titles_can_be_written():
    tokenizer = tiny_tokenizer(TITLES)
    trie = TitleTrie(TITLES, tokenizer)
    allowed = trie.allowed(1)
    written, ends = [[]], []
    while written:
        path = written.pop()
        for token in allowed(0, torch.tensor([0, *path])):
            if token == tokenizer.eos_token_id:
                ends.append([*path, token])
            elif len(path) < trie.longest:
                written.append([*path, token])
    assert ends
    assert all(trie.items(path) for path in ends)


# -- defects --------------------------------------------------------------------------------------------------------


def subtracting_what_was_added(patch):
    real = sharpness.kept_weights

    @contextlib.contextmanager
    def subtracting(params):
        with real(params) as kept:
            yield kept
            moved = [(p.detach().float() - w.float()) for p, w in zip(params, kept, strict=True)]
            back = [(p.detach().float() - e).to(p.dtype) for p, e in zip(params, moved, strict=True)]
        with torch.no_grad():
            for p, b in zip(params, back, strict=True):
                p.copy_(b)

    patch.setattr(sharpness_optimiser, "kept_weights", subtracting)


def weights_as_they_fall(patch):
    patch.setattr(sharpness, "_normalised", lambda f, n: f)


def counts_of_the_whole_log(patch):
    def leaking(split, *, seed):
        parts = leave_last(split, seed=seed)
        return dataclasses.replace(parts, train=joined(parts.train, parts.valid))

    patch.setattr(sequence, "leave_last", leaking)


def other_masks_in_each_pass(patch):
    real = sequential.SASRec.target_losses

    def drifting(self, history, target, *, masks, offset=None):
        drifting.calls += 1
        return real(self, history, target, masks=masks + drifting.calls, offset=offset)

    drifting.calls = 0
    patch.setattr(sequential.SASRec, "target_losses", drifting)


def a_table_by_position(patch):
    def allowed(self, width):
        def of(batch, ids):
            at = len(ids) - width
            return sorted({(*title, self._end, self._end)[min(at, len(title))] for title in self._items})

        return of

    patch.setattr(TitleTrie, "allowed", allowed)


PAIRS = [
    (an_ascent_leaves_every_bit_of_the_weights, subtracting_what_was_added),
    (weights_have_mean_1_over_interactions, weights_as_they_fall),
    (held_out_items_change_no_count, counts_of_the_whole_log),
    (without_a_perturbation_both_passes_lose_the_same, other_masks_in_each_pass),
    (only_titles_can_be_written, a_table_by_position),
]


def test_defect_turns_its_check_red(pair, turns_red):
    turns_red(*pair)
