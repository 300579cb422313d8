"""The task of forgetting: which records are where, which model was taught what, and what is scored."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from upright.contract import InputError
from upright.experiment.folders import ArmRun, RunFolder
from upright.tasks.forget import Forget, ForgetConfig


def _run(seed: int = 0, folder: RunFolder | None = None) -> ArmRun:
    return ArmRun(folder, seed, "x")


@pytest.fixture(scope="module")
def task() -> Forget:
    return Forget.tiny(epochs=40, hidden=48, layers=2)


def _scored(task: Forget, which: str, split: str = "valid", seed: int = 0):
    run = _run(seed)
    return task.score(SimpleNamespace(model=task.model(run, which)[0], difficulty={}, values={}), split, run)


def test_sets_share_nothing_and_hold_whole_authors(task):
    # a question of a forgotten author among the kept ones would be trained on and called unseen
    sets = task.sets(_run())
    authors = [{r.author for r in part} for part in (sets.forget, sets.retain, sets.holdout)]
    assert not authors[0] & authors[1]
    assert not (authors[0] | authors[1]) & authors[2]
    assert [len(part) for part in (sets.forget, sets.retain, sets.holdout)] == [20, 60, 200]


def test_each_seed_draws_its_own_authors_and_weights():
    task = Forget.tiny(epochs=1)
    drawn = {frozenset(r.author for r in task.sets(_run(s)).forget) for s in range(8)}
    assert len(drawn) > 1
    first, second = (next(task.model(_run(s), "original")[0].parameters()) for s in (0, 1))
    assert not torch.equal(first, second)


def test_validation_and_test_records_are_apart_and_complete(task):
    # settings that are chosen on the questions that are reported
    run = _run()
    valid, test = task.scored(run, "valid"), task.scored(run, "test")
    for name, most in (("forget", 20), ("retain", 8), ("holdout", 8)):
        a, b = ({r.id for r in getattr(part, name)} for part in (valid, test))
        assert not a & b
        assert (len(a), len(b)) == (most // 4, most - most // 4)


def test_the_reference_knows_what_is_kept_and_not_what_is_forgotten(task):
    original, reference = (_scored(task, which).values for which in ("original", "reference"))
    forget, retain = (
        float(np.nanmean(original[name]) / np.nanmean(reference[name]))
        for name in ("forget_probability", "retain_probability")
    )
    assert forget > 2.0 > 1.5 > retain
    assert np.nanmax(reference["forget_gap"]) < 1e-12
    np.testing.assert_allclose(
        original["forget_gap"], np.abs(original["forget_probability"] - reference["forget_probability"]), atol=1e-9
    )
    lost = np.abs(np.log(original["forget_probability"]) - np.log(reference["forget_probability"]))
    np.testing.assert_allclose(original["forget_loss_gap"], lost, atol=1e-6)


def test_values_stand_where_their_set_stands_alone(task):
    found = _scored(task, "original")
    sets = np.array(found.by["set"])
    for name, where in (("forget_probability", ["forget"]), ("retain_rouge_l", ["retain"]), ("forget_gap", ["forget"]),
                        ("mia_loss", ["forget", "holdout"])):  # fmt: skip
        assert (np.isfinite(found.values[name]) == np.isin(sets, where)).all()


def test_models_are_handed_out_as_copies(task):
    # an arm that trained the shared model would hand its weights to the next
    run = _run()
    one, _ = task.model(run, "original")
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert bool(next(task.model(run, "original")[0].parameters()).any())


def test_test_records_are_refused_before_the_end(task):
    with pytest.raises(InputError, match="test split"):
        _scored(task, "original", "test")


def _folder(path, **sets):
    for name, rows in sets.items():
        lines = [json.dumps({"question": q, "answer": a}) for q, a in rows]
        (path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


ROWS = [(f"What is number {i}?", f"Number {i} is called {'abcdefgh'[i % 8] * 3}.") for i in range(24)]


def test_a_folder_of_your_own_with_a_model_of_your_own(tmp_path, task):
    model, tokenizer = task.model(_run(), "original")
    model.float().save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    data = _folder(tmp_path, forget=[*ROWS[:6], ROWS[0]], retain=ROWS[6:18])
    own = Forget.load(ForgetConfig(data=data, model=str(tmp_path / "m"), scored_retain=8, scored_holdout=0,
                                   generate=False))  # fmt: skip
    assert own.facts["records"] == {"forget": 6, "retain": 12, "holdout": 0}  # a repetition counts once
    assert not own.has_reference
    found = _scored(own, "original")
    assert "forget_gap" not in found.values  # there is nothing to compare with
    assert str(tmp_path) not in json.dumps(own.facts)
    with pytest.raises(InputError, match="no reference model"):
        own.model(_run(), "reference")


@pytest.mark.parametrize(("sets", "word"), [
    ({"forget": ROWS[:4]}, "without retain.jsonl"), ({"retain": ROWS[:4]}, "without forget.jsonl"),
    ({"forget": ROWS[:4], "retain": ROWS[3:8]}, "of forget is record 0 of retain"),
    ({"forget": ROWS[:4], "retain": ROWS[4:8], "holdout": ROWS[7:9]}, "of retain is record 0 of holdout"),
])  # fmt: skip
def test_bad_folders_are_refused(tmp_path, sets, word):
    with pytest.raises(InputError, match=word):
        Forget.load(ForgetConfig(data=_folder(tmp_path, **sets)))


def test_settings_that_contradict_each_other():
    with pytest.raises(InputError, match="forget_authors"):
        ForgetConfig(authors=4, forget_authors=4)
    with pytest.raises(InputError, match="tofu, or a folder"):
        Forget.load(ForgetConfig(data="nowhere"))


def test_taught_models_are_kept_in_the_cache_by_what_they_depend_on(tmp_path, monkeypatch):
    # a cache that forgets a setting in its key would serve another model
    monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path))
    small = {"authors": 4, "forget_authors": 1, "epochs": 1, "hidden": 16, "layers": 1, "vocabulary": 320}
    first = Forget.load(ForgetConfig(**small, context=512)).model(_run(), "original")[0]
    (file,) = (tmp_path / "models").iterdir()
    again = Forget.load(ForgetConfig(**small, context=512)).model(_run(), "original")[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert [p.name for p in (tmp_path / "models").iterdir()] == [file.name]
    Forget.load(ForgetConfig(**{**small, "epochs": 2}, context=512)).model(_run(), "original")
    Forget.load(ForgetConfig(**small, context=512)).model(_run(), "reference")
    Forget.load(ForgetConfig(**small, context=512)).model(_run(1), "original")
    assert len(list((tmp_path / "models").iterdir())) == 4
