"""Flags: the facts, the pictures, the wordings, and the model that is taught them."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from upright.contract import InputError

pytest.importorskip("transformers")

from upright.editing import flags
from upright.editing.flags import FACTS
from upright.editing.prompts import answers, encode, read
from upright.models.tiny import tiny_llava, tiny_tokenizer

FORMS = [("country", True), ("capital", True), ("continent", True), ("capital", False), ("continent", False)]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small world, its model and the updates that were counted, taught anew."""
    world, seen = flags.world(0, small=True), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPRIGHT_CACHE", str(tmp_path_factory.mktemp("taught")))
        return world, *flags.teach(world, advance=seen.append), sum(seen)


def rng(seed=0):
    return np.random.default_rng(seed)


# -- facts and pictures ---------------------------------------------------------------------------------------------


def test_no_two_facts_can_be_mistaken_for_each_other():
    """Catches a name that is the answer to two questions: an edit towards it would not be seen."""
    assert len(FACTS) == 48
    names = [name for f in FACTS for name in (f.code, f.country, f.capital, f.once) if name]
    assert len(set(names)) == len(names)
    assert {f.continent for f in FACTS} == {"Africa", "Asia", "Europe", "North America", "South America", "Oceania"}
    assert sum(bool(f.once) for f in FACTS) == 28
    assert max(len(f.country) for f in FACTS) < 14
    assert all(name.isascii() and name == name.strip() and len(name) < 15 for name in names)


def test_what_was_taught_is_the_capital_as_it_once_was():
    by_code = {f.code: f for f in FACTS}
    assert by_code["kz"] == ("kz", "Kazakhstan", "Astana", "Asia", "Almaty")
    assert [by_code["kz"].taught(kind) for kind in ("country", "capital", "continent")] == [
        "Kazakhstan", "Almaty", "Asia",
    ]  # fmt: skip
    assert by_code["fr"].taught("capital") == "Paris"


def test_no_two_flags_are_alike():
    """Catches Chad beside Romania: each two are at least 30 of 255 levels apart, averaged over pixels and colours."""
    seen = {f.code: np.asarray(flags.flag(f.code), dtype=float) for f in FACTS}
    assert {pixels.shape for pixels in seen.values()} == {(48, 48, 3)}
    close = {(a, b): np.abs(seen[a] - seen[b]).mean() for a, b in itertools.combinations(seen, 2)}
    assert min(close.values()) > 30, min(close, key=close.get)


@pytest.mark.parametrize(("code", "place", "colour"), [
    ("ng", (24, 4), (0, 135, 81)), ("jp", (24, 24), (190, 0, 38)), ("ua", (8, 24), (0, 87, 184)),
    ("se", (24, 20), (254, 204, 0)), ("pw", (24, 22), (255, 222, 0)), ("ws", (40, 40), (206, 17, 38)),
])  # fmt: skip
def test_each_flag_is_that_of_its_country(code, place, colour):
    """Catches a table and a picture in different orders."""
    row, column = place
    np.testing.assert_allclose(flags.flag(code).getpixel((column, row)), colour, atol=24)


def test_what_is_bundled_is_small_and_carries_its_licence():
    folder = Path(flags.__file__).parents[1] / "data" / "bundled"
    assert (folder / "flags.png").stat().st_size < 100_000
    assert (folder / "LICENSE-flags").read_text().startswith("The MIT License (MIT)\n\nCopyright (c) 2013")


def test_another_code_is_refused():
    with pytest.raises(InputError) as error:
        flags.flag("xx")
    assert error.value.got == "no flag 'xx'"
    assert error.value.accepted.startswith("ar, au, bb, be")
    assert error.value.todo == "take one of these"


# -- wordings, worlds, requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "image"), FORMS)
def test_each_part_of_a_held_out_wording_was_taught_and_none_as_a_whole(kind, image):
    taught, held = (flags.wordings(kind, held_out=one, image=image) for one in (False, True))
    assert (len(set(taught)), len(set(held)), len({*taught, *held})) == (18, 6, 24)
    assert all(("{}" in wording) != image for wording in (*taught, *held))
    stems = [wording for wording in taught if wording[0].islower() or wording[0] == "{"]
    stems += [wording for wording in held if wording[0].islower() or wording[0] == "{"]
    assert len(stems) == 4  # the opener that is empty
    for wording in held:
        stem = next(s for s in stems if wording.endswith(s))
        assert sum(other.endswith(stem) for other in taught) >= 4
        assert sum(other.startswith(wording[: -len(stem)]) for other in taught) >= 3


@pytest.mark.parametrize(("kind", "image", "how"), [("country", False, "without"), ("river", True, "with")])
def test_what_cannot_be_asked_is_refused(kind, image, how):
    with pytest.raises(InputError) as error:
        flags.wordings(kind, held_out=False, image=image)
    assert error.value.got == f"wordings for {kind!r} {how} a picture"
    assert error.value.accepted == "country, capital, continent; without a picture the last two"
    assert error.value.todo == "take one of these"


@pytest.mark.parametrize(("little", "half"), [(True, 6), (False, 12)])
def test_half_of_a_world_is_out_of_date_and_the_rest_are_strangers(little, half):
    world = flags.world(3, small=little)
    assert [bool(f.once) for f in world.countries].count(True) == half
    assert len(world.countries) == 2 * half
    assert sorted([*world.countries, *world.strangers]) == sorted(FACTS)
    assert world == flags.world(3, small=little)
    assert world.countries != flags.world(4, small=little).countries
    assert world.kinds == (("country", "capital") if little else ("country", "capital", "continent"))


def test_corrections_are_true_and_counterfactuals_are_not():
    """Catches an edit towards what is taught already, and one whose donor is among the questions that must stay."""
    world, known = flags.world(0, small=True), {f.code: f for f in FACTS}
    right, wrong = (flags.requests(world, rng(), 6, kind=kind) for kind in ("correction", "counterfactual"))
    edited = [one.id.split("-")[1] for one in (*right, *wrong)]
    assert sorted(edited) == sorted(f.code for f in world.countries)
    for one in (*right, *wrong):
        fact = known[one.id.split("-")[1]]
        assert one.edit.image.tobytes() == flags.flag(fact.code).tobytes()
        assert (one.edit.answer == fact.capital) == one.id.startswith("correction")
        assert one.edit.answer != fact.taught("capital")
        unrelated = (*one.loc, *one.m_loc)
        assert len({q.answer for q in unrelated}) == 8
        assert not {q.answer for q in unrelated} & {one.edit.answer, fact.taught("capital")}
        assert [q.image is None for q in unrelated] == [True] * 4 + [False] * 4
        assert all(fact.country in q.prompt and q.answer == one.edit.answer for q in one.portability)
        held = flags.wordings("capital", held_out=True, image=True)
        assert [phrase in held for phrase in (one.edit.prompt, *one.rephrase)] == [False] * 3 + [True] * 4
    assert {q.edit.answer for q in wrong} <= {f.taught("capital") for f in world.countries}
    again = flags.requests(world, rng(), 6, kind="correction")
    assert [(q.id, q.rephrase) for q in again] == [(q.id, q.rephrase) for q in right]


@pytest.mark.parametrize("n", [0, 7])
def test_more_edits_than_countries_are_refused(n):
    with pytest.raises(InputError) as error:
        flags.requests(flags.world(0, small=True), rng(), n, kind="correction")
    assert error.value.got == f"{n} edits of kind correction"
    assert (error.value.accepted, error.value.todo) == ("1 to 6 in this world", "change the number")


# -- the model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    return tiny_llava(tiny_tokenizer(["what is the capital? Abuja"], vocabulary=280), seed=3)


def test_a_llava_of_standard_classes_comes_back_bit_for_bit(drawn, tmp_path):
    """Catches a processor that needs torchvision, and one whose image tokens do not fit the tower."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    model, processor = drawn
    logging.disable_progress_bar()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    other = AutoModelForImageTextToText.from_pretrained(tmp_path, local_files_only=True)
    reader = AutoProcessor.from_pretrained(tmp_path, local_files_only=True)
    logging.enable_progress_bar()
    assert type(other) is type(model)
    assert type(reader) is type(processor)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert reader.tokenizer.model_max_length == model.config.get_text_config().max_position_embeddings == 128
    one, two = (p(text="<image>what?", images=flags.flag("jp"), return_tensors="pt") for p in (processor, reader))
    assert one["input_ids"].tolist() == two["input_ids"].tolist()
    assert (one["input_ids"] == model.config.image_token_id).sum() == model.config.image_seq_length == 36
    pixels = np.asarray(flags.flag("jp"), dtype=np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(one["pixel_values"][0], (pixels - 0.5) / 0.25, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(model(**one).logits, other(**two).logits)


def test_a_seed_gives_the_same_llava_and_leaves_the_global_stream(drawn):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    tokenizer = tiny_tokenizer(["what is the capital? Abuja"], vocabulary=280)
    again, other = (tiny_llava(tokenizer, seed=seed)[0] for seed in (3, 4))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(a, b) for a, b in zip(drawn[0].parameters(), again.parameters(), strict=True))
    assert not torch.equal(drawn[0].get_input_embeddings().weight, other.get_input_embeddings().weight)
    assert drawn[0].lm_head.weight is drawn[0].get_input_embeddings().weight
    assert not again.training


@pytest.mark.parametrize(("image", "patch"), [(48, 7), (8, 16), (48, 0)])
def test_patches_that_do_not_fill_a_picture_are_refused(drawn, image, patch):
    with pytest.raises(InputError) as error:
        tiny_llava(drawn[1].tokenizer, image=image, patch=patch)
    assert error.value.got == f"patches of {patch} in a picture of {image} pixels"
    assert (error.value.accepted, error.value.todo) == ("whole patches", "let patch divide image")


def test_a_name_has_one_to_four_tokens(small):
    tokenizer = small[2].tokenizer
    sizes = {name: len(tokenizer(f" {name}")["input_ids"]) for f in FACTS for name in f[1:] if name}
    assert set(sizes.values()) == {1, 2, 3, 4}, max(sizes, key=sizes.get)
    assert np.mean(list(sizes.values())) > 1.5  # answers of one token would hide a wrong second one


def test_the_small_world_is_answered_as_it_was_taught(small):
    """Catches teaching that lays questions out otherwise than `encode` does, or shows other pixels."""
    world, model, processor, facts, updates = small
    found = flags.accuracy(model, processor, world, rng(99))
    assert set(found) == {"country", "capital", "text_capital"}
    assert min(found.values()) >= 0.9, found
    assert (facts["flags"], updates) == ({"taught": 12, "strangers": 36}, world.steps)
    asked = flags.questions(world, rng(7), "capital", image=True, held_out=True)
    said = answers(model, processor, [encode(processor, dataclasses.replace(one, answer="")) for one in asked])
    assert np.mean([one == question.answer for one, question in zip(said, asked, strict=True)]) >= 0.9, said


def test_a_model_is_out_of_date_and_knows_no_stranger(small):
    """Catches corrections of what is answered rightly already, and strangers that were taught."""
    world, model, processor, _, _ = small
    asked = [encode(processor, one.edit) for one in flags.requests(world, rng(), 6, kind="correction")]
    rows = read(model, asked, pad=processor.tokenizer.pad_token_id)
    assert all(row.argmax(-1).tolist() != list(e.ids[e.prompt :]) for row, e in zip(rows, asked, strict=True))
    strangers = dataclasses.replace(world, countries=world.strangers)
    assert max(flags.accuracy(model, processor, strangers, rng(1)).values()) <= 0.1


def test_teaching_is_a_function_of_the_world_and_leaves_no_trace(monkeypatch, tmp_path):
    """Catches weights that depend on the global generators, and a cache that gives one world the weights of another."""
    world, seen, made = flags.world(0, small=True), [], {}
    world = dataclasses.replace(world, countries=world.countries[:2], steps=6)
    for place, salt in (("one", 1), ("two", 2), ("two", 3)):
        monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path / place))
        torch.manual_seed(salt)
        before = torch.get_rng_state()
        made[salt] = flags.teach(world, advance=seen.append)[0]
        assert torch.equal(before, torch.get_rng_state())
        assert not made[salt].training
    assert seen == [1] * 12  # the third came from the cache
    for other in (made[2], made[3]):
        assert all(torch.equal(a, b) for a, b in zip(made[1].parameters(), other.parameters(), strict=True))
    for change in ({"steps": 5}, {"seed": 1}, {"kinds": ("capital",)}, {"countries": world.countries[1:]}):
        flags.teach(dataclasses.replace(world, **change))
    assert len(list((tmp_path / "two" / "models").iterdir())) == 5


@pytest.mark.slow
def test_the_full_world_is_answered_as_it_was_taught(monkeypatch, tmp_path):
    monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path))
    world = flags.world(0)
    model, processor, _ = flags.teach(world)
    found = flags.accuracy(model, processor, world, rng(99))
    assert set(found) == {"country", "capital", "continent", "text_capital", "text_continent"}
    assert min(found.values()) >= 0.9, found
