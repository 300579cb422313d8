"""The task of edits: which questions train and which test, units, and a user's own requests."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("transformers")

import edit_sample
from upright.contract import InputError
from upright.editing.environments import question_key
from upright.experiment.folders import ArmRun
from upright.models import hub
from upright.tasks.edit import Edit, EditConfig

NOTHING = SimpleNamespace(edits={}, before={})


def said(error):
    return error.value.got, error.value.accepted, error.value.todo


@pytest.fixture(scope="module")
def tiny():
    return Edit.tiny(0), ArmRun(None, 0, "x")


def test_no_training_question_is_a_test_and_no_edit_is_in_two_splits(tiny):
    task, run = tiny
    known = task._of(run).known
    assert (len(known["valid"].given), len(known["test"].given)) == (1, 2)
    assert not known["valid"].given.keys() & known["test"].given.keys()
    for name, own in task._of(run).given.items():
        train = {question_key(q) for place, some in own.train.items() for q in some if place != "edit"}
        test = {question_key(q) for some in own.test.values() for q in some}
        assert not train & test, name
        assert len(own.train["same_image"]) == len(own.test["same_image"]) == 1


def test_a_method_sees_no_test_question(tiny):
    task, run = tiny
    assert all(own.test == {} and own.train["edit"] for own in task.given(run).values())
    with pytest.raises(InputError) as error:
        task.score(NOTHING, "test", run)
    assert said(error) == (
        "the test questions inside a method", "'valid'", "select on validation; the runner scores",
    )  # fmt: skip


def test_units_are_edits_in_environments(tiny):
    task, run = tiny
    found = task.score(NOTHING, "valid", run)
    (name,) = task._of(run).known["valid"].given
    assert set(found.cluster) == {name}
    assert list(found.unit) == [f"{name}/{place}" for place in found.by["environment"]]
    assert np.isfinite(found.values["edit_score"]).sum() == 1
    at = found.by["environment"].index("text")
    assert {m for m, v in found.values.items() if np.isfinite(v[at])} == {"text_generality", "text_generality_written"}
    kept = ("text_locality", "image_locality", "same_image", "other_image", "no_image")
    assert [np.nanmean(found.values[m]) for m in kept] == [1.0] * 5


def test_a_text_before_the_questions_is_read(tiny):
    # catches: in-context controls that are told nothing
    task, run = tiny
    (name,) = task._of(run).known["valid"].given
    told = SimpleNamespace(edits={}, before={name: "Bern Bern Bern Bern Bern Bern Bern Bern Bern"})
    values = task.score(told, "valid", run).values
    locality = [np.nanmean(values[m]) for m in ("text_locality", "no_image", "image_locality", "same_image")]
    assert min(locality) < 1.0


def test_more_edits_than_the_model_has_facts():
    task = Edit.tiny(0, test=40)
    with pytest.raises(InputError) as error:
        task.given(ArmRun(None, 0, "x"))
    assert said(error) == (
        "41 edits of 12 that the model does not answer already", "as many or fewer",
        "lower test or valid, or set small to false",
    )  # fmt: skip


def test_validation_without_edits():
    task = Edit.tiny(0, valid=0)
    with pytest.raises(InputError) as error:
        task.score(NOTHING, "valid", ArmRun(None, 0, "x"))
    assert said(error) == ("no edits for validation", "at least one", "raise valid")


def test_flags_have_their_own_model():
    with pytest.raises(InputError) as error:
        EditConfig(data="requests.jsonl")
    assert said(error) == (
        "data = 'requests.jsonl' with model = 'taught'", "flags with taught, or a file of requests with a folder",
        "set data and model",
    )  # fmt: skip


def test_requests_and_a_text_model_of_your_own(monkeypatch, tmp_path):
    # without images and without questions to keep: the other requests stand for what must stay
    monkeypatch.setattr(hub, "load_editable", lambda folder: edit_sample.text_model(), raising=False)
    asked = {country: f"What is the capital of {country}?" for country in ("Italy", "Peru", "Mali", "Fiji")}
    rows = [{"id": name, "prompt": prompt, "target": "Abuja"} for name, prompt in asked.items()]
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    task, run = Edit(EditConfig(data=str(file), model="m", valid=1)), ArmRun(None, 0, "x")
    assert task.facts["edits"] == 4
    assert sorted(task.given(run)) == sorted(asked)
    assert all(own.train["unrelated_text"] for own in task.given(run).values())
    task.open_test()
    found = task.score(NOTHING, "test", run)
    assert len(set(found.cluster)) == 3
    assert np.nanmean(found.values["text_locality"]) == 1.0
    assert "kind" not in found.by
