"""The task of alignment: what stands in which set, which negatives are partners, what is scored and what is refused."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from upright.contract import InputError
from upright.experiment.folders import ArmRun
from upright.language.alignment import PairReading
from upright.metrics.alignment import METRICS
from upright.tasks.align import Align, AlignConfig, matched, pair_values

BEGIN = {"negative": "Just", "mislabelled": "Please", "neutral": "The"}


def _run(seed: int = 0) -> ArmRun:
    return ArmRun(None, seed, "x")


def _score(task: Align, model, split: str = "valid", seed: int = 0):
    return task.score(SimpleNamespace(model=model), split, _run(seed))


@pytest.fixture(scope="module")
def task() -> Align:
    sizes = {"objective": 12, "test": 16, "negatives": 16, "mislabelled": 16, "neutral": 8, "elsewhere": 40}
    return Align.tiny(**sizes, hidden=32, epochs=6, precision="float32")


def _sides(sets):
    """Prompts of each set."""
    found = {name: {p.prompt for p in getattr(sets, name)} for name in ("objective", "valid", "test")}
    return found | {name: {r.prompt for r in own} for name, own in sets.candidates.items()} | {
        "retain": {r.prompt for r in sets.retain}, "elsewhere": {r.prompt for r in sets.elsewhere}
    }  # fmt: skip


def test_no_prompt_is_in_two_sets_and_sizes_are_those_that_were_asked_for(task):
    # catches: a pair that is steered by and scored, a held-out thing that was taught
    sets = task.sets(_run())
    prompts = _sides(sets)
    assert not [pair for pair in itertools.combinations(prompts, 2) if prompts[pair[0]] & prompts[pair[1]]]
    assert [len(sets.objective), len(sets.valid), len(sets.test), len(sets.retain)] == [12, 8, 16, 8]
    assert Counter(task.kinds(_run())) == {"negative": 16, "mislabelled": 16, "neutral": 8}
    things = {name: {p.split()[-1] for p in own} for name, own in prompts.items()}
    assert not (things["valid"] | things["test"]) & (things["objective"] | things["negative"] | things["elsewhere"])
    task.open_test()
    assert len(task.pairs(_run(), "test")) == 16


def test_kinds_are_those_of_the_records_and_their_order_tells_nothing(task):
    # catches: kinds that are shuffled apart from the records, a pool in the order of its kinds
    pool, kinds = task.pool(_run()), task.kinds(_run())
    assert [r.answer.split()[0] for r in pool] == [BEGIN[kind] for kind in kinds]
    assert sum(a != b for a, b in itertools.pairwise(kinds)) > 10
    assert len({r.prompt for r in pool}) == len(pool) == len(set(task.groups(_run())))


def test_partners_are_the_closest_that_one_to_one_allows():
    # catches: a loss that is matched by rank alone, one record as the partner of two, lengths that do not count
    rng = np.random.default_rng(0)
    first = (rng.normal(size=4), rng.integers(3, 5, 4))
    second = (rng.normal(size=5), rng.integers(3, 5, 5))
    scale = np.concatenate([first[0], second[0]]).std()

    def cost(i: int, j: int) -> float:
        return float(abs(first[0][i] - second[0][j]) / scale + abs(first[1][i] - second[1][j]))

    i, j = matched(first, second, 4)
    found = sum(cost(a, b) for a, b in zip(i, j, strict=True))
    assert found == pytest.approx(min(sum(map(cost, range(4), p)) for p in itertools.permutations(range(5), 4)))
    assert [cost(a, b) for a, b in zip(i, j, strict=True)] == sorted(cost(a, b) for a, b in zip(i, j, strict=True))
    assert [len(part) for part in matched(first, second, 2)] == [2, 2]


def test_neither_loss_nor_length_tells_mislabelled_from_true_negatives(task):
    # catches: a pool whose largest losses are the true negatives, which a trivial arm would find; the candidates differ
    run = _run()
    speaker = task.speaker(task.model(run)[0], run)
    candidates = task.sets(run).candidates
    loss = {r: float(x) for own in candidates.values() for r, x in zip(own, speaker.losses(own), strict=True)}
    size = {
        r: one.answer_length for own in candidates.values() for r, one in zip(own, speaker.encode(own), strict=True)
    }
    side = {kind: [r for r, k in zip(task.pool(run), task.kinds(run), strict=True) if k == kind] for kind in BEGIN}
    wins = [np.sign(loss[a] - loss[b]) for a in side["negative"] for b in side["mislabelled"]]
    assert abs(np.mean(wins)) < 0.15
    assert Counter(size[r] for r in side["negative"]) == Counter(size[r] for r in side["mislabelled"])
    apart = [np.sort([loss[r] for r in own]) for own in (side["negative"], side["mislabelled"])]
    whole = [np.sort([loss[r] for r in candidates[kind]]) for kind in ("negative", "mislabelled")]
    assert np.abs(apart[0] - apart[1]).mean() < 0.5 * np.abs(whole[0] - whole[1]).mean()


def test_each_seed_draws_its_own_sets_and_weights_and_always_the_same():
    one, two = Align.tiny(epochs=1), Align.tiny(epochs=1)
    assert one.sets(_run(0)) == two.sets(_run(0)) != one.sets(_run(1))
    assert one.pool(_run(0)) == two.pool(_run(0))
    first, again, other = (next(t.model(_run(s))[0].parameters()) for t, s in ((one, 0), (two, 0), (one, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first[:200], other[:200])


def test_the_start_model_is_its_own_reference_and_values_stand_in_their_set(task):
    # catches: a reference of another seed or split, margins of the wrong sign, a set's values in the rows of the other
    model, _ = task.model(_run())
    found = _score(task, model)
    pairs = np.array(found.by["set"]) == "pairs"
    assert set(found.values) == {*METRICS} - {"helps", "hurts", "undecided"}
    for name, values in found.values.items():
        assert (np.isfinite(values) == (pairs if name != "retain_probability" else ~pairs)).all()
    assert np.abs(found.values["implicit_margin"][pairs]).max() < 1e-6
    speaker, chosen = task.speaker(model, _run()), task.pairs(_run(), "valid")
    from upright.data.preferences import records_of

    good, bad = (speaker.losses(records_of(chosen, side)) for side in ("chosen", "rejected"))
    assert found.values["ranking_accuracy_mean"][pairs].tolist() == (good < bad).astype(float).tolist()
    assert found.values["retain_probability"][~pairs] == pytest.approx(
        np.exp(-speaker.losses(task.scored_retain(_run(), "valid")))
    )
    assert set(found.by["source"]) == {"care", "transport", ""}
    assert len(set(found.cluster)) == len(found.unit)


def test_a_model_that_is_taught_the_chosen_answers_gains_on_every_metric(task):
    # catches: chosen and rejected answers that changed places anywhere on the way
    from upright.language.pretraining import teach

    model, _ = task.model(_run())
    before = _score(task, model).values
    teach(model, task.encoded_pairs(_run(), "valid")[0], epochs=60, learning_rate=3e-3)
    after = _score(task, model).values
    for name in ("ranking_accuracy", "ranking_accuracy_mean", "implicit_accuracy", "implicit_margin"):
        assert np.nanmean(after[name]) > np.nanmean(before[name]) + 0.3
    assert (after["length_accuracy"] == before["length_accuracy"])[:8].all()


def test_models_are_handed_out_as_copies(task):
    one, _ = task.model(_run())
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert bool(next(task.model(_run())[0].parameters()).any())


def test_length_alone_takes_the_side_that_is_right_more_often():
    # catches: a predictor that is right in 20 % and is called worse than a model that is right in 70 %
    tokens = np.array([3, 4, 5, 6, 9])
    own = PairReading(np.array([-1.0, -2, -3, -9, -9]), np.array([-2.0, -2, -9, -8, -8]), tokens, np.full(5, 5))
    found = pair_values(own, None)
    assert found["ranking_accuracy"].tolist() == [1, 0.5, 1, 0, 0]
    longer = pair_values(PairReading(own.chosen, own.rejected, np.full(5, 6), np.array([5, 5, 5, 6, 9])), None)
    assert (found["length_accuracy"].tolist(), longer["length_accuracy"].tolist()) == (
        [1, 1, 0.5, 0, 0], [1, 1, 1, 0.5, 0],
    )  # fmt: skip
    assert longer["beyond_length"].tolist() == [0, -0.5, 0, -0.5, 0]


def test_test_pairs_are_refused_before_the_end():
    task = Align.tiny(epochs=1)
    for ask in (lambda: task.pairs(_run(), "test"), lambda: _score(task, task.model(_run())[0], "test")):
        with pytest.raises(InputError, match="the test pairs inside a method"):
            ask()
    task.open_test()
    assert len(_score(task, task.model(_run())[0], "test").unit) == 12 + 6


def _folder(path: Path, **files) -> str:
    for name, rows in files.items():
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)


PAIRS = [{"prompt": f"What is number {i}?", "chosen": f"It is {i}.", "rejected": f"It is not {i}."} for i in range(24)]
BAD = [{"prompt": f"Who is {i}?", "completion": f"Nobody, {i}.", "label": i % 4 == 3} for i in range(12)]
FEW = {"objective": 8, "valid": 4, "test": 8}


def test_a_folder_of_your_own(tmp_path):
    # catches: a repeated negative that weighs twice, held-out pairs that are steered by, good answers in the pool
    task = Align.load(AlignConfig(data=_folder(tmp_path, pairs=PAIRS, negatives=[*BAD, BAD[0]]), **FEW, epochs=0))
    sets = task.sets(_run())
    assert [len(part) for part in (sets.objective, sets.valid, sets.test, sets.retain)] == [8, 4, 8, 3]
    assert task.kinds(_run()) == ("negative",) * 9
    assert not _sides(sets)["objective"] & (_sides(sets)["valid"] | _sides(sets)["test"])
    assert str(tmp_path) not in json.dumps(task.facts)
    held = Align.load(AlignConfig(data=_folder(tmp_path, pairs=PAIRS[:10], heldout=PAIRS[10:]), **FEW, epochs=0))
    assert {p.prompt for p in held.sets(_run()).objective} == {row["prompt"] for row in PAIRS[:10]}


@pytest.mark.parametrize(("files", "word"), [
    ({"pairs": PAIRS}, "a folder with pairs.jsonl and negatives.jsonl"),
    ({"pairs": PAIRS[:12], "negatives": BAD}, "12 for objective 8, valid 4, test 8"),
    ({"pairs": PAIRS, "negatives": [{"prompt": "a b", "completion": "c"}]}, "without a text to keep"),
    ({"pairs": PAIRS, "heldout": PAIRS, "negatives": BAD}, "of the objective and pair .* held out have one prompt"),
    ({"pairs": PAIRS, "heldout": [{**r, "prompt": f"{r['prompt']} Now?"} for r in PAIRS],
      "negatives": [*BAD, {"prompt": PAIRS[5]["prompt"], "completion": PAIRS[5]["chosen"], "label": False}]},
     "record 5 of chosen is record 12 of negatives"),
    ({"pairs": PAIRS, "negatives": BAD, "retain": [{"question": "Who is 1?", "answer": "Nobody, 1."}]},
     "record 1 of negatives is record 0 of retain"),
])  # fmt: skip
def test_bad_folders_are_refused(tmp_path, files, word):
    with pytest.raises(InputError, match=word):
        Align.load(AlignConfig(data=_folder(tmp_path, **files), **FEW, epochs=0))


def test_a_pool_may_lack_a_kind():
    # catches: nothing to read, which the reader refuses, in place of an empty kind
    for sizes in ({"neutral": 0}, {"mislabelled": 0}, {"mislabelled": 2, "neutral": 1}):
        expected = {"negative": 6, "mislabelled": 6, "neutral": 3} | sizes
        found = Counter(Align.tiny(epochs=1, **sizes).kinds(_run()))
        assert found == {kind: n for kind, n in expected.items() if n}


def test_settings_that_contradict_each_other():
    with pytest.raises(InputError, match="a true negative as the partner of each"):
        AlignConfig(negatives=8)
    with pytest.raises(InputError, match="lower elsewhere, or add pairs"):
        Align.tiny(elsewhere=400).sets(_run())


def test_taught_models_are_kept_by_what_they_depend_on(tmp_path, monkeypatch):
    # a key that forgets a setting, or the records, would serve another model
    monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path))
    small = Align.tiny(epochs=1).config
    first, again = (Align.load(small).model(_run())[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    for changes, seed in (({"epochs": 2}, 0), ({"elsewhere": 9}, 0), ({"hidden": 24}, 0), ({}, 1)):
        Align.load(small.replace(**changes)).model(_run(seed))
    assert len(list((tmp_path / "models").iterdir())) == 5


@pytest.mark.parametrize(("name", "pairs"), [("hh-rlhf", 942), ("halueval", 500)])
def test_published_pairs(name, pairs):
    # catches: an answer or a question that is too long, whole conversations as prompts, negatives from held-out prompts
    folder = Path(os.environ.get("UPRIGHT_DATA", "")) / name
    if not os.environ.get("UPRIGHT_DATA") or not folder.is_dir():
        pytest.skip(f"{name} is not below UPRIGHT_DATA")
    task = Align.load(AlignConfig(data=name))
    assert task.facts["pairs"] == pairs
    sets = task.sets(_run())
    prompts = _sides(sets)
    assert not [pair for pair in itertools.combinations(prompts, 2) if prompts[pair[0]] & prompts[pair[1]]]
    assert Counter(task.kinds(_run())) == {"negative": 32, "mislabelled": 32}
    if name == "hh-rlhf":
        texts = [text for p in sets.test for text in (p.prompt, p.chosen, p.rejected)]
        assert max(len(text.split()) for text in texts) <= 30
        assert not any("\n\nHuman:" in text for text in texts)
