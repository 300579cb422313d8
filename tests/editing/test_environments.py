"""Edit requests and their environments: shapes of files, images from nowhere else, training apart from the test."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from upright.contract import InputError
from upright.editing.environments import (
    EditRequest,
    environments,
    image_digest,
    image_view,
    question_key,
    read_requests,
)
from upright.editing.prompts import Question

PROMPT, TARGET = "What is the capital?", "Abuja"


def picture(seed, size=24):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8))


def png(seed):
    written = io.BytesIO()
    picture(seed).save(written, "PNG")
    return written.getvalue()


def url(seed):
    return "data:image/png;base64," + base64.b64encode(png(seed)).decode()


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(questions):
    return [(one.prompt, one.answer) for one in questions]


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(("flag", "other", "stranger")):
        (tmp_path / f"{name}.png").write_bytes(png(seed))
    return tmp_path


MMEDIT = {
    "src": PROMPT, "pred": "Lagos", "alt": TARGET, "image": "flag.png", "rephrase": "Which city is the capital?",
    "image_rephrase": "other.png", "loc": "nq question: who wrote it", "loc_ans": "Ada", "m_loc": "stranger.png",
    "m_loc_q": "What colour is it?", "m_loc_a": "red", "cond": "Lagos >> Abuja || What is the capital?",
}  # fmt: skip
VLKEB = {
    **MMEDIT, "alt": [TARGET], "rephrase": ["Which city is the capital?"], "image_rephrase": ["other.png"],
    "loc": ["nq question: who wrote it"], "loc_ans": ["Ada"], "m_loc": ["stranger.png"],
    "m_loc_q": ["What colour is it?"], "m_loc_a": ["red"],
    "port_new": [{"port_type": "1-hop", "Q&A": {"Question": "On which river does it lie?", "Answer": "none"}}],
}  # fmt: skip


@pytest.mark.parametrize("row", [MMEDIT, VLKEB, {"prompt": PROMPT, "target": TARGET} | MMEDIT])
def test_the_shapes_of_mmedit_and_vlkeb(folder, row):
    # catches: a key that is lost, a list that is read as a text, a picture given to another question
    (one,) = read_requests(write(folder / "r.jsonl", row))
    assert (one.id, one.edit.prompt, one.edit.answer) == ("0", PROMPT, TARGET)
    assert one.rephrase == ("Which city is the capital?",)
    assert texts(one.loc + one.m_loc) == [("nq question: who wrote it", "Ada"), ("What colour is it?", "red")]
    seen = (one.edit.image, *one.image_rephrase, *(each.image for each in one.m_loc))
    assert [image_digest(each) for each in seen] == [image_digest(picture(seed)) for seed in range(3)]
    follows = [("On which river does it lie?", "none", one.edit.image)] if row is VLKEB else []
    assert [(each.prompt, each.answer, each.image) for each in one.portability] == follows


def test_one_array_text_alone_and_a_data_url(folder):
    rows = [
        {"id": "a", "prompt": PROMPT, "target": TARGET, "loc": "Who?"},
        {"prompt": PROMPT, "target": "Lagos", "image": url(1), "portability": [
            {"question": "The capital is", "answer": "Sarh", "image": None}, {"question": "Q?", "answer": "A"}]},
    ]  # fmt: skip
    (folder / "r.json").write_text(json.dumps(rows))
    plain, shown = read_requests(folder / "r.json")
    assert (plain.id, plain.edit.image, texts(plain.loc)) == ("a", None, [("Who?", "")])
    assert image_digest(shown.edit.image) == image_digest(picture(1))
    assert [one.image for one in shown.portability] == [None, shown.edit.image]
    assert read_requests(write(folder / "t.jsonl", rows[0]), text_only=True)[0].edit.prompt == PROMPT


def test_rephrasings_that_may_not_stand_are_left_out_and_counted(folder):
    # catches: a benchmark that cannot be read because of 45 lines, and a re-phrasing that tells the answer
    row = {"prompt": "Is it Abuja or Lagos?", "target": TARGET}
    rows = [
        {**MMEDIT, "rephrase": ["what is the capital", "Abuja is the capital of?", "Say it.", "say it"]},
        {**row, "rephrase": "Say: is it Lagos or Abuja?"},  # the prompt holds the target as well
    ]
    with pytest.warns(UserWarning, match=r"^3 re-phrasings left out: r.jsonl line 1 first$"):
        one, other = read_requests(write(folder / "r.jsonl", *rows))
    assert one.rephrase == ("Say it.",)
    assert other.rephrase == ("Say: is it Lagos or Abuja?",)


# -- what is refused ------------------------------------------------------------------------------------------------

NOWHERE = "a path below the folder of the file, or a data: URL"
ADDRESS = "image {!r}, {}\n  accepted: " + NOWHERE + "\n  to do:    copy it there: nothing else is read"
BROKEN = "image {!r}, which cannot be read\n  accepted: PNG, JPEG, WebP, GIF or BMP\n  to do:    save it again"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "https://x.org/a.png"}, ADDRESS.format("https://x.org/a.png", "a web address")),
        ({"image": "file:///etc/hostname"}, ADDRESS.format("file:///etc/hostname", "a web address")),
        ({"image": "../flag.png"}, ADDRESS.format("../flag.png", "outside the folder")),
        ({"image": "/etc/hostname"}, ADDRESS.format("/etc/hostname", "outside the folder")),
        ({"image": "link.png"}, ADDRESS.format("link.png", "outside the folder")),
        ({"image": "none.png"}, ADDRESS.format("none.png", "which is no file there")),
        ({"image": "r.jsonl"}, BROKEN.format("r.jsonl")),
        ({"image": "cut.png"}, BROKEN.format("cut.png")),
        ({"image": "data:image/png;base64,!!"}, BROKEN.format("data:image/png;base64,!!")),
        ({"image": "a\0b"}, BROKEN.format("a\0b")),
        ({"image": "bomb.png"}, "image 'bomb.png' of 5000 x 5000 pixels\n  accepted: at most 16,777,216\n"
                                "  to do:    save it smaller"),
        ({"image": "large.png"}, "image 'large.png' of more than 20 MB\n  accepted: a smaller file\n"
                                 "  to do:    save it smaller"),
        ({"image": ["flag.png", "other.png"]}, "1 prompts, 1 targets and 2 images\n  accepted: prompt (or src), target "
                                               "(or alt) and at most one image\n  to do:    correct the request"),
        ({"target": ""}, "request 0 with a prompt of 20 and a target of 0 characters\n"
                         "  accepted: a prompt, and a target of 1 to 400 characters\n  to do:    correct the request"),
        ({"target": "x" * 401}, "request 0 with a prompt of 20 and a target of 401 characters\n"
                                "  accepted: a prompt, and a target of 1 to 400 characters\n"
                                "  to do:    correct the request"),
        ({"target": None}, "1 prompts, 0 targets and 0 images\n  accepted: prompt (or src), target (or alt) and at "
                           "most one image\n  to do:    correct the request"),
        ({"rephrase": 3}, "'rephrase' of type int\n  accepted: a text or a list of texts\n  to do:    correct it"),
        ({"rephrases": "a"}, "key 'rephrases'\n  accepted: rephrase\n  to do:    rename the key"),
        ({"loc": ["a", "b"], "loc_ans": "c"}, "2 loc and 1 loc_ans\n  accepted: an answer for each, or none\n"
                                              "  to do:    complete the lists"),
        ({"m_loc_q": "a"}, "0 m_loc and 1 m_loc_q\n  accepted: a question for each picture\n"
                           "  to do:    complete the lists"),
        ({"portability": ["a"]}, "portability without question or answer\n  accepted: both, as texts\n"
                                 "  to do:    complete it"),
    ],
)  # fmt: skip
def test_bad_requests(folder, change, message):
    os.symlink("/etc/hostname", folder / "link.png")
    (folder / "cut.png").write_bytes(png(0)[:400])
    Image.new("1", (5000, 5000)).save(folder / "bomb.png")
    with (folder / "large.png").open("wb") as file:
        file.truncate((20 << 20) + 1)
    path = write(folder / "r.jsonl", {"prompt": PROMPT, "target": TARGET, **change})
    with pytest.raises(InputError) as error:
        read_requests(path)
    assert str(error.value) == f"r.jsonl line 1: {message}"


@pytest.mark.parametrize("key", ["image", "image_rephrase", "m_loc"])
def test_an_image_for_a_model_of_text(folder, key):
    path = write(folder / "r.jsonl", {"prompt": PROMPT, "target": TARGET, key: "flag.png"})
    with pytest.raises(InputError) as error:
        read_requests(path, text_only=True)
    assert str(error.value) == (
        f"r.jsonl line 1: key {key!r}, for a model of text alone\n  accepted: requests without images\n"
        "  to do:    leave the key out, or take a model that reads images"
    )


def test_requests_that_contradict_each_other(folder):
    # catches: two edits of one fact, of which the later one wins; the same picture in another file, other marks
    (folder / "again.bmp").write_bytes(b"")
    picture(0).save(folder / "again.bmp")
    one = {"id": "a", "prompt": PROMPT, "target": TARGET, "image": "flag.png"}
    fine = [one, {**one, "id": "b", "image": "other.png", "target": "Lagos"}, {**one, "id": "c", "target": "abuja."}]
    assert len(read_requests(write(folder / "r.jsonl", *fine))) == 3
    other = {**one, "id": "d", "image": "again.bmp", "prompt": "what is the capital", "target": "Lagos"}
    with pytest.raises(InputError) as error:
        read_requests(write(folder / "r.jsonl", one, other))
    assert str(error.value) == (
        "r.jsonl line 2: request d wants another answer than request a to the same question\n"
        "  accepted: one target for a question about a picture\n  to do:    leave one of the two out"
    )
    with pytest.raises(InputError, match="line 2: id 'a' again"):
        read_requests(write(folder / "r.jsonl", one, one))


@pytest.mark.parametrize("phrase", ["The capital is Abuja, is it?", "what is the CAPITAL", ""])
def test_a_rephrasing_that_tells_the_answer(phrase):
    with pytest.raises(InputError) as error:
        EditRequest("a", Question(PROMPT, TARGET), rephrase=("Fine.", phrase))
    assert str(error.value) == (
        f"request a with a rephrase that comes again or holds the target: {phrase!r}\n"
        "  accepted: other words for the prompt\n  to do:    leave that rephrase out"
    )


# -- environments ---------------------------------------------------------------------------------------------------


def asked(*numbers, image=None):
    return tuple(Question(f"Question {n}?", str(n), image and picture(100 + n)) for n in numbers)


def full(**more):
    given = {"rephrase": ("Say it.",), "loc": asked(1), "m_loc": asked(2, image=True), "portability": asked(3)}
    return EditRequest("a", Question(PROMPT, TARGET, picture(0)), **{**given, **more})


def keys(part):
    return [question_key(one) for one in part]


def test_environments_of_a_whole_request():
    # catches: a test that trains, a slice that is lost, a target that is wanted where the answer should stay
    same = tuple(replace(one, image=picture(0)) for one in asked(20, 21))
    pool = asked(10, 11) + asked(12, image=True)
    made = environments(full(), unrelated=(*pool, *full().loc, full().edit), same=same)
    assert {name: len(part) for name, part in made.train.items()} == {
        "edit": 1, "text": 2, "image": 2, "unrelated_text": 2, "unrelated_image": 1, "same_image": 1,
    }  # fmt: skip
    assert {name: len(part) for name, part in made.test.items()} == {
        "edit": 1, "text": 1, "image": 2, "unrelated_text": 1, "unrelated_image": 1, "same_image": 1, "joint": 2,
        "portability": 1, "other_image": 1, "no_image": 1,
    }  # fmt: skip
    assert texts(made.test["text"]) == [("Say it.", TARGET)]  # what a request brings is for the test
    assert keys(made.train["unrelated_text"]) == keys(pool[:2])
    assert keys(made.test["unrelated_text"]) == keys(full().loc)
    assert {one.answer for name in ("edit", "text", "image") for one in made.train[name]} == {TARGET}
    assert {one.answer for name in ("edit", "text", "image", "joint") for one in made.test[name]} == {TARGET}
    (other,), (none,) = made.test["other_image"], made.test["no_image"]
    assert question_key(other) == question_key(replace(full().m_loc[0], prompt=PROMPT))
    assert (other.answer, none.answer, none.prompt, none.image) == ("", "", PROMPT, None)
    for joint, view in zip(made.test["joint"], made.test["image"], strict=True):
        assert (joint.prompt, joint.image) == ("Say it.", view.image)


@pytest.mark.parametrize("seed", range(5))
def test_training_and_test_are_apart_by_construction(seed):
    # catches: one stream for both, one list of templates for both, a view that is the picture itself
    made = environments(full(rephrase=()), seed=seed, paraphrases=4, views=4)
    train = {key for name, part in made.train.items() if name != "edit" for key in keys(part)}
    test = {key for part in made.test.values() for key in keys(part)}
    assert not train & test
    assert len({key[0] for key in keys(made.train["image"] + made.test["image"] + made.test["edit"])}) == 9
    assert len({key[1] for key in keys(made.train["text"] + made.test["text"] + made.test["edit"])}) == 9
    again = environments(full(rephrase=()), seed=seed, paraphrases=4, views=4)
    assert [keys(part) for part in again.test.values()] == [keys(part) for part in made.test.values()]
    assert keys(made.train["image"]) != keys(environments(full(), seed=seed + 5, views=4).train["image"])


@pytest.mark.parametrize(("given", "train", "test"), [(0, 2, 2), (1, 2, 1), (2, 2, 1), (3, 2, 1), (6, 2, 4)])
def test_of_several_rephrasings_the_last_never_trains(given, train, test):
    phrases = tuple(f"Wording {n}" for n in range(given))
    views = tuple(picture(50 + n) for n in range(given))
    made = environments(full(rephrase=phrases, image_rephrase=views))
    assert [len(part[name]) for part in (made.train, made.test) for name in ("text", "image")] == [train] * 2 + [
        test
    ] * 2
    assert {one.prompt for one in made.train["text"]} >= set(phrases[: min(2, max(given - 1, 0))])
    assert not given or made.test["text"][-1].prompt == phrases[-1]
    assert not given or made.test["image"][-1].image is views[-1]


def test_without_unrelated_questions_of_its_own_a_request_shares_the_given_ones():
    made = environments(full(loc=(), m_loc=()), unrelated=asked(1, 2, 5) + asked(4, image=True))
    assert texts(made.train["unrelated_text"]) == texts(asked(1))
    assert texts(made.test["unrelated_text"]) == texts(asked(2, 5))
    assert "unrelated_image" not in made.train  # one alone is for the test
    assert texts(made.test["unrelated_image"]) == texts(asked(4))


def test_other_questions_about_the_picture_are_a_slice_of_their_own():
    # catches: the hardest slice, which no file could bring; the picture of the edit as "another picture"
    asked = [Question(f"Question {i}?", "", picture(0 if i < 3 else i)) for i in range(5)]
    found = environments(EditRequest("r", Question(PROMPT, TARGET, picture(0)), m_loc=tuple(asked)))
    assert texts(found.train["same_image"]) == texts(asked[:1])
    assert texts(found.test["same_image"]) == texts(asked[1:3])
    assert [image_digest(one.image) for one in found.test["other_image"]] == [image_digest(picture(4))]


def test_text_alone_has_no_environment_of_pictures():
    made = environments(EditRequest("a", Question(PROMPT, TARGET), loc=asked(1)))
    assert set(made.train) == {"edit", "text"}
    assert set(made.test) == {"edit", "text", "unrelated_text"}


def test_questions_that_differ_in_a_sign_are_two(folder):
    # catches: "3 + 2" and "3 * 2" taken for one question with two answers
    rows = [{"prompt": f"What is 3 {sign} 2?", "target": target} for sign, target in (("+", "5"), ("*", "6"))]
    assert len(read_requests(write(folder / "r.jsonl", *rows))) == 2


def test_a_template_that_tells_the_answer_is_not_used():
    # catches: "Question: what is it?" where the answer is "question"
    made = environments(EditRequest("a", Question("What is it?", "question")), paraphrases=4)
    assert [one.prompt for part in (made.train, made.test) for one in part["text"] if "uestion" in one.prompt] == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"portability": asked(10)}, "'Question 10?' in training (unrelated_text) and test (portability)"),
        ({"image_rephrase": (picture(0),)}, "'What is the capital?' in training (edit) and test (image)"),
        ({"image_rephrase": (picture(1), picture(1))}, "'What is the capital?' in training (image) and test (image)"),
    ],
)
def test_a_test_that_trains_is_refused(change, where):
    # catches: a leak that no construction hinders, since the caller brings it
    unrelated = [replace(one, image=None) for one in asked(10)]
    request = full(**change)
    request = replace(request, portability=()) if "portability" not in change else request
    with pytest.raises(InputError) as error:
        environments(replace(request, loc=asked(10, 5)) if "portability" in change else request, unrelated=unrelated)
    assert str(error.value) == (
        f"request a: {where}\n  accepted: tests that no training has seen\n  to do:    take it out of one of the two"
    )


def test_views_are_near_and_differ():
    # catches: a view that is another picture, one that changes the size or nothing at all
    smooth = picture(0, 4).resize((40, 30), Image.Resampling.BICUBIC)
    near, far = (
        [
            np.abs(np.asarray(image_view(smooth, np.random.default_rng(i), s), float) - np.asarray(smooth)).mean()
            for i in range(8)
        ]
        for s in (0.1, 1.0)
    )
    assert image_view(smooth, np.random.default_rng(0)).size == (40, 30)
    assert image_view(smooth.convert("L"), np.random.default_rng(0)).mode == "RGB"
    assert 0 < max(near) < min(far) < 60
    assert len({image_digest(image_view(smooth, np.random.default_rng(i))) for i in range(8)}) == 8
