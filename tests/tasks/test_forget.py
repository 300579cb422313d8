"""The task of forgetting: which records are where, which model was taught what, and what is scored."""

from __future__ import annotations

import json
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from upright.contract import InputError
from upright.experiment.folders import ArmRun, RunFolder
from upright.language import pretraining
from upright.language.pretraining import read_passages
from upright.tasks.forget import Forget, ForgetConfig


def _run(seed: int = 0, folder: RunFolder | None = None) -> ArmRun:
    return ArmRun(folder, seed, "x")


@pytest.fixture(scope="module")
def task() -> Forget:
    size = {"hidden": 48, "layers": 2, "vocabulary": 1024, "context": 512}
    return Forget.tiny(epochs=12, batch_size=8, precision="float32", **size)


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


# -- a model that read other text first -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A data folder with 20 speeches of 130 words."""
    folder = tmp_path_factory.mktemp("data")
    place = folder / "public-domain-texts"
    place.mkdir()
    for name, first in (("state_union", 0), ("inaugural", 10)):
        with zipfile.ZipFile(place / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/README", "not a speech " * 200)
            for i in range(first, first + 10):
                said = np.random.default_rng(i).choice(["peace", "work", "law", "trade", "war"], 129)
                archive.writestr(f"{name}/{i:02}.txt", " ".join([f"speech{i}", *said]))
    return folder


@pytest.fixture(scope="module")
def reader(texts) -> Forget:
    return Forget(_small(pretrain=2), str(texts))


def _small(**changes) -> ForgetConfig:
    return Forget.tiny(epochs=2).config.replace(**changes)


def test_every_tenth_speech_is_held_out_as_a_whole(texts):
    # catches: passages of one speech on both sides, a passage that is no passage of its speech, what is no speech
    read, held_out = read_passages(str(texts))
    speeches = [{r.author for r in part} for part in (read, held_out)]
    assert len(speeches[0]) == 18
    assert speeches[1] == {"state_union/09.txt", "inaugural/19.txt"}
    assert all(len(r.answer.split()) == 64 and r.prompt == "" for r in (*read, *held_out))
    assert len(read) == 36
    assert len({r.id for r in (*read, *held_out)}) == 40


def test_original_and_reference_start_from_one_model_that_read_the_text(texts, monkeypatch):
    # catches: text read by the original alone, taught records in what both start from, held-out text that is read,
    # and general text among what is taught
    seen, reader = [], Forget(_small(pretrain=2), str(texts))
    monkeypatch.setattr(
        pretraining, "teach", lambda model, encoded, **rest: seen.append((model.state_dict(), list(encoded))) or []
    )
    run = _run()
    tokenizer = reader.model(run, "original")[1]
    reader.model(run, "reference")
    told = [[tokenizer.decode(one.ids, skip_special_tokens=True) for one in encoded] for _, encoded in seen]
    sets = reader.sets(run)
    assert len(seen) == 4
    assert told[0] == told[2] == [r.answer for r in reader._read]
    rehearsed = [r.answer for r in reader._read[::16]]
    assert rehearsed
    for at, wanted in ((1, (*sets.retain, *sets.forget)), (3, sets.retain)):
        assert told[at] == [*(f"Question: {r.prompt}\nAnswer: {r.answer.strip()}" for r in wanted), *rehearsed]
    assert not {r.answer for r in sets.general} & {text for part in told for text in part}


def test_what_was_read_is_the_same_at_every_draw_of_authors(texts, monkeypatch, tmp_path):
    # catches: a key without the text or the seed; the model of another draw or length of teaching made anew
    monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path))
    real, taught = pretraining.teach, []

    def teach(*given, epochs, **rest):
        taught.append(epochs)
        return real(*given, epochs=epochs, **rest)

    monkeypatch.setattr(pretraining, "teach", teach)
    first = Forget.load(_small(pretrain=3), str(texts))
    for which in ("original", "reference"):
        first.model(_run(), which)
    assert taught == [3, 2, 2]
    other = Forget.load(_small(pretrain=3, forget_authors=2, epochs=1), str(texts))
    other.model(_run(), "reference")
    assert taught == [3, 2, 2, 1]
    first.model(_run(1), "original")
    assert taught == [3, 2, 2, 1, 3, 2]


def test_general_text_is_scored_beside_the_records_and_by_speech(reader):
    # the loss of each passage, written out for one at a time
    found = _scored(reader, "original")
    inside = np.array(found.by["set"]) == "general"
    assert (np.isfinite(found.values["general_loss"]) == inside).all()
    model, tokenizer = reader.model(_run(), "original")
    passages = reader.scored(_run(), "valid").general
    for value, passage in zip(found.values["general_loss"][inside], passages, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(passage.answer)["input_ids"]]
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = [-float(logs[i, token]) for i, token in enumerate(ids[1:])]
        assert value == pytest.approx(np.mean(wanted), rel=1e-9)
    cluster = [c for c, i in zip(found.cluster, inside, strict=True) if i]
    assert (
        len(set(cluster))
        == len({p.author for p in passages})
        == len({(c, p.author) for c, p in zip(cluster, passages, strict=True)})
    )


def test_without_pretraining_nothing_is_other_than_before():
    # catches: a setting or a set that changes the models or the scores of a run that does not ask for text
    plain = Forget(_small())
    assert plain.scored(_run(), "valid").general == ()
    assert plain.facts["records"] == {"forget": 20, "holdout": 200, "retain": 60}
    assert not {"pretrain", "text"} & set(plain._settings())


@pytest.mark.parametrize(("settings", "word"), [
    ({"pretrain": 1}, "no text to pretrain on"),
    ({"pretrain": 1, "model": "smollm2"}, "pretrain = 1 with model = 'smollm2'"),
])  # fmt: skip
def test_pretraining_without_text_or_on_a_model_that_was_pretrained(monkeypatch, settings, word):
    monkeypatch.delenv("UPRIGHT_DATA", raising=False)
    with pytest.raises(InputError, match=word) as caught:
        Forget.load(ForgetConfig(**settings))
    assert caught.value.accepted
    assert caught.value.todo
