"""ODEdit as a method: what each arm trains with, and what a run notes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from upright.editing import invariant
from upright.editing.environments import question_key
from upright.experiment.folders import ArmRun
from upright.experiment.registry import load_method
from upright.methods import odedit
from upright.tasks.edit import Edit

SPEC = load_method("odedit")
KEPT = {"unrelated_text", "unrelated_image", "same_image"}


@pytest.fixture(scope="module")
def task():
    return Edit.tiny(0)


def trained_with(task, name, monkeypatch):
    """What an arm hands to the loop, by request, and its settings."""
    seen, real = {}, invariant.odedit

    def spy(model, processor, given, **options):
        seen[options["id"]] = given.train, options
        return real(model, processor, given, **options | {"steps": 1})

    monkeypatch.setattr(invariant, "odedit", spy)
    (arm,) = [arm for arm in SPEC.arms if arm.name == name]
    run = ArmRun(None, 0, name)
    result = SPEC.run(task, odedit.ODEditConfig(**SPEC.tiny).replace(**arm.settings), run)
    return seen, result, run


def test_arms_differ_in_what_they_say_and_not_in_what_must_stay(task, monkeypatch):
    own = task.given(ArmRun(None, 0, "x"))
    weights = {"ft": (1, 0, 0), "aug": (1, 0, 0), "aug_kl": (1, 1, 0), "odedit": (1, 1, 0.1), "no_mmd": (1, 1, 0)}
    for name, wanted in weights.items():
        with monkeypatch.context() as patch:
            seen, result, _ = trained_with(task, name, patch)
        assert result.edits.keys() == own.keys()
        for request, (train, options) in seen.items():
            assert options["weights"] == wanted
            assert options["tv"] == (0.1 if name in ("odedit", "no_mmd") else 0.0)
            assert set(train) == ({"edit"} | KEPT if name == "ft" else set(own[request].train)), name


def test_a_placebo_reads_as_much_and_nothing_of_its_own_edit(task, monkeypatch):
    own = task.given(ArmRun(None, 0, "x"))
    seen, _, _ = trained_with(task, "placebo", monkeypatch)
    for name, (train, options) in seen.items():
        others = {question_key(q) for o in own if o != name for e in ("text", "image") for q in own[o].train[e]}
        for place in ("text", "image"):
            assert len(train[place]) == len(own[name].train[place])
            assert {question_key(q) for q in train[place]} <= others
            assert {q.answer for q in train[place]} == {""}  # the model's own answers
        assert options["weights"][2] == 0.0  # states of other facts have no reason to meet


def test_a_placebo_needs_another_request():
    (arm,) = [arm for arm in SPEC.arms if arm.name == "placebo"]
    assert arm.unfit(SimpleNamespace(facts={"edits": 1})) == (
        "there is one request, and no other to take re-phrasings from"
    )
    assert arm.unfit(SimpleNamespace(facts={})) == ""


def test_in_context_changes_no_weight_and_tells_the_fact(task, monkeypatch):
    seen, result, run = trained_with(task, "in_context", monkeypatch)
    assert (seen, result.edits) == ({}, {})
    for name, own in task.given(run).items():
        assert result.before[name] == f"{own.train['edit'][0].prompt} {own.train['edit'][0].answer}."


def test_what_a_run_notes(task, monkeypatch):
    _, _, run = trained_with(task, "odedit", monkeypatch)
    trace, ended = run.notes["trace"], run.notes["ended"]
    assert {"step", "risk_edit", "slope_edit", "tv", "lambda", "probability", "reliability"} <= set(trace[0])
    assert sum(ended[f"ended_{why}"] for why in ("target", "steps", "locality")) == 1.0
    assert [row["site"].split(".")[-1] for row in run.notes["layers"]] == ["down_proj"] * 3
    assert all(row["norm"] > 0 for row in run.notes["layers"])
    assert run.notes["pictures"] == "odedit.pictures.png"


def test_the_native_door():
    assert odedit.odedit is invariant.odedit
    assert odedit.Edited is invariant.Edited
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = odedit.nothing
