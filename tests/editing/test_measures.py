"""Measuring an edit: against what the model wrote before, teacher-forced and written out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from upright.contract import InputError
from upright.editing import flags
from upright.editing.environments import Environments, environments
from upright.editing.measures import before, measure, present
from upright.editing.prompts import Question


def said(error):
    return error.value.got, error.value.accepted, error.value.todo


@pytest.fixture(scope="module")
def asked(small_world):
    """A counterfactual request, its environments, and what the model says before."""
    world, model, processor = small_world
    (request,) = flags.requests(world, np.random.default_rng(0), 1, kind="counterfactual")
    given = {request.id: environments(request, unrelated=())}
    return request, given, before(model, processor, given)


def test_a_model_without_an_edit_keeps_everything_and_has_learnt_nothing(small_world, asked):
    _, model, processor = small_world
    request, _, was = asked
    edits, values = measure(model, processor, was).values()
    assert edits == [request.id]
    kept = {"text_locality", "image_locality", "other_image", "no_image"}
    for name, value in values.items():
        plain = name.removesuffix("_written")
        if plain != "same_image":  # this request has no such question
            assert value.tolist() == [1.0 if plain in kept else 0.0], name


def test_what_is_kept_is_what_the_model_wrote_and_not_what_is_true(small_world):
    # catches: locality measured against the answers of a data set, which a model never gave
    _, model, processor = small_world
    edit = Question("what is the capital?", "Nowhere", flags.flag("jp"))
    own = {"r": Environments({}, {"edit": (edit,), "unrelated_text": (Question("who wrote Faust?", "Goethe"),)})}
    was = before(model, processor, own)
    assert was.questions[1].question.answer != "Goethe"
    found = measure(model, processor, was)
    assert (found.environment, found.equal.tolist(), found.written.tolist()) == (
        ["edit", "unrelated_text"], [0.0, 1.0], [0.0, 1.0],
    )  # fmt: skip


def test_a_wanted_answer_longer_than_sixteen_tokens_is_written_out_in_full(small_world):
    _, model, processor = small_world
    edit = Question("what is the capital?", "Abuja " * 12, flags.flag("ng"))
    assert before(model, processor, {"r": Environments({}, {"edit": (edit,)})}).most > 16


def test_a_target_that_is_answered_already(small_world):
    _, model, processor = small_world
    edit = Question("what is the capital?", "x", flags.flag("ng"))
    now = present(model, processor, {"r": Environments({}, {"edit": (edit,)})})["r"]
    own = {"r": Environments({}, {"edit": (dataclasses.replace(edit, answer=now.upper()),)})}
    with pytest.raises(InputError) as error:
        before(model, processor, own)
    assert said(error) == (
        f"request r with the target {now.upper()!r}, which the model answers already",
        "an answer that it does not give yet", "leave the request out",
    )  # fmt: skip


def blind(model):
    """A handle that makes a model fail without a picture."""

    def refuse(module, args, inputs):
        ids = inputs["input_ids"]
        if ids.shape[1] > 1 and not (ids == model.config.image_token_id).any():
            raise ValueError("pixel_values are needed")

    return model.register_forward_pre_hook(refuse, with_kwargs=True)


def test_a_model_that_needs_a_picture_is_not_asked_without(small_world, asked):
    _, model, processor = small_world
    request, given, _ = asked
    handle = blind(model)
    try:
        was = before(model, processor, given)
        assert set(was.left_out) == {"no_image", "unrelated_text", "portability"}
        assert not {one.environment for one in was.questions} & set(was.left_out)
        bare = dataclasses.replace(request.edit, image=None)
        with pytest.raises(InputError) as error:
            before(model, processor, {"r": Environments({}, {"edit": (bare,)})})
    finally:
        handle.remove()
    assert said(error) == (
        "request r without an image, for a model that answers about images alone", "a request with an image",
        "add the image",
    )  # fmt: skip


def test_a_request_that_is_not_there(small_world, asked):
    _, model, processor = small_world
    request, _, was = asked
    with pytest.raises(InputError) as error:
        measure(model, processor, was, "other")
    assert said(error) == ("request 'other'", request.id, "name one of these")


def test_a_change_is_seen_in_both_ways(small_world, asked):
    # catches: before-values that are read again from the changed model
    _, model, processor = small_world
    module = model.get_submodule("model.language_model.layers.2.mlp.down_proj")
    handle = module.register_forward_hook(lambda m, a, out: out + 50 * torch.ones_like(out).cumsum(-1).sin())
    try:
        values = measure(model, processor, asked[2]).values()[1]
    finally:
        handle.remove()
    for name in ("text_locality", "image_locality", "other_image", "no_image"):
        assert values[name].tolist() == values[f"{name}_written"].tolist() == [0.0]
