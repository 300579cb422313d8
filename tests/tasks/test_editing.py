"""Audit of an edit: numbers by a plain recount, the same for folder, adapter and file; nothing is written to."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import re

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("transformers")

import torch

from upright import api
from upright.cli import app
from upright.contract import InputError
from upright.editing import desk, flags
from upright.editing.edits import Editable, base_checksum, load_edit, merged_copy
from upright.editing.environments import EditRequest, environments
from upright.editing.layers import sites
from upright.editing.prompts import Question, answers, collate, encode
from upright.evidence.gate import fail_if
from upright.language.encoding import pad_of
from upright.models.tiny import tiny_llama, tiny_tokenizer
from upright.report import build_report

NEW = ("edit", "text", "image", "joint")


def dump(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def put(image, path):
    image.save(path)
    return path.name


def row_of(request: EditRequest, folder):
    """Return a request as a line of a file, its pictures beside it."""
    row = {"id": request.id, "prompt": request.edit.prompt, "target": request.edit.answer}
    row |= {"rephrase": list(request.rephrase), "loc": [q.prompt for q in request.loc]}
    row["portability"] = [{"question": q.prompt, "answer": q.answer, "image": None} for q in request.portability]
    if request.edit.image is not None:
        row["image"] = put(request.edit.image, folder / f"{request.id}.png")
        row["m_loc"] = [put(q.image, folder / f"{request.id}-{i}.png") for i, q in enumerate(request.m_loc)]
        row["m_loc_q"] = [q.prompt for q in request.m_loc]
    return row


def learn(model, processor, requests, steps=40, **options):
    """Return an edit that learns requests and their re-phrasings, and nothing of what is to be kept."""
    asked = [q for r in requests for name in ("edit", "text") for q in environments(r).train[name]]
    batch = collate([encode(processor, q) for q in asked], pad=pad_of(getattr(processor, "tokenizer", processor)))
    some = Editable(sites(model), **options)
    optimizer = torch.optim.AdamW(some.parameters(), lr=2e-2)
    with some.hooked(model):
        for _ in range(steps):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    model.zero_grad()
    return some.edit({"base": base_checksum(model)})


@pytest.fixture(scope="module")
def requests(small_world):
    return flags.requests(small_world[0], np.random.default_rng(0), 6, kind="counterfactual")


@pytest.fixture(scope="module")
def home(small_world, requests, tmp_path_factory):
    """Six requests, the model before, and one edit of all of them as a file, a whole folder and an adapter."""
    folder, (_, model, processor) = tmp_path_factory.mktemp("home"), small_world
    dump(folder / "edits.jsonl", [row_of(request, folder) for request in requests])
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    edit = learn(model, processor, requests)
    edit.save(folder / "all.safetensors")
    edit.to_peft(folder / "adapter", model)
    merged_copy(model, [edit], folder / "merged", processor)
    none = dataclasses.replace(edit, factors={name: (a, 0 * b) for name, (a, b) in edit.factors.items()})
    none.save(folder / "none.safetensors")
    return folder


def run(home, model="merged", base="base", **options):
    files = {"base": home / base} if base else {}
    files |= {"edit": [home / one for one in options.pop("edit")]} if "edit" in options else {}
    given = {"edits": home / "edits.jsonl", "out": home / "audits", "draws": 100, **files, **options}
    return api.audit("edit", home / model, **given).folder


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def level(summary, statistic):
    (row,) = [x for x in summary["evidence"]["levels"] if x["statistic"] == statistic]
    return row


def rows_of(folder):
    with (folder / "questions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(home):
    return run(home)


def test_a_plain_recount_gives_the_same_answers(small_world, requests, home, whole):
    # catches: answers before that are asked of the edited model, a wanted answer of another environment, train for test
    (_, model, processor), edit = small_world, load_edit(home / "all.safetensors")
    asked = [(r.id, name, q) for r in requests for name, own in environments(r).test.items() for q in own]
    blank = [encode(processor, dataclasses.replace(q, answer="")) for _, _, q in asked]
    said = answers(model, processor, blank)
    with edit.applied(model):
        now = answers(model, processor, blank)
    wanted = [q.answer if env in (*NEW, "portability") else old for (_, env, q), old in zip(asked, said, strict=True)]
    right = [a.casefold() == b.casefold() for a, b in zip(now, wanted, strict=True)]
    found = sorted((row["edit"], row["environment"], float(row["written"]) == 1) for row in rows_of(whole))
    assert found == sorted((r, env, ok) for (r, env, _), ok in zip(asked, right, strict=True))
    shares = [[ok for (one, env, _), ok in zip(asked, right, strict=True) if (one, env) == (r.id, "other_image")]
              for r in requests]  # fmt: skip
    mean = np.mean([np.mean(own) for own in shares])
    assert level(summary_of(whole), "mean:other_image_written")["value"] == pytest.approx(mean)


def test_numbers_are_those_of_the_desk_to_the_last_bit(home, requests, tmp_path):
    # catches: another way of asking, other views of pictures, files that are applied in another order
    two = dump(tmp_path / "two.jsonl", [row_of(request, tmp_path) for request in requests[2:4]])
    any_ = desk.Settings(steps=12, reliability=0, generality=0, locality=0, retention=0)
    made = desk.apply(desk.Opened(tmp_path / "desk", home / "base"), two, settings=any_)["edits"]
    names = [row["edit"] for row in made]
    folder = run(
        home, model="base", base=None, edit=[tmp_path / f"desk/edits/{n}.safetensors" for n in names], edits=two
    )
    table, own = pl.read_parquet(folder / "units.parquet"), requests[3].id
    found = {m: v for u, m, v in table.select("unit", "metric", "value").rows() if u == own and not np.isnan(v)}
    assert found == made[1]["scores"]["after"]
    assert made[1]["scores"]["before"] != made[1]["scores"]["after"]
    worst = {row["edit"]: row["worst"] for row in summary_of(folder)["arms"][0]["notes"]["edits"]}
    assert worst[own] == found["worst_environment"]


@pytest.mark.parametrize(
    "options", [{"model": "adapter"}, {"model": "base", "base": None, "edit": ["all.safetensors"]}]
)
def test_folder_adapter_and_file_say_the_same_and_stay_as_they_are(home, whole, options):
    # catches: an adapter that is loaded and not on, a file that is applied twice, a merge into the user's folder
    def sums():
        files = [p for p in home.rglob("*") if p.is_file() and not {"audits", "cli"} & {*p.parts}]
        return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    start = sums()
    assert len(start) > 10
    assert rows_of(run(home, **options)) == rows_of(whole)
    assert sums() == start


def test_a_generality_stands_beside_the_locality_that_it_cost(whole):
    # catches: a score that answers everywhere with the target and is called good; shortfalls of means of something else
    summary = summary_of(whole)
    means = {m: level(summary, f"mean:{m}")["value"] for m in ("reliability", "text_generality", "text_locality")}
    assert means["reliability"] == 1.0 == means["text_generality"]
    assert means["text_locality"] < 0.5
    assert level(summary, "mean:edit_score")["value"] < 0.6
    found = {x["metric"]: x for x in summary["evidence"]["levels"] if x["statistic"].startswith("shortfall:")}
    assert set(found) == {"reliability", "text_generality", "image_generality", "joint_generality", "text_locality",
                          "image_locality", "other_image", "no_image"}  # fmt: skip
    for metric, row in found.items():
        assert row["value"] == pytest.approx(1 - level(summary, f"mean:{metric}")["value"])
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    verdict = summary["evidence"]["verdict"]
    assert (verdict["word"], verdict["primary"]) == ("gap shown", "shortfall:text_locality")
    assert summary["evidence"]["headline"]["value"] == found["text_locality"]["value"]
    assert "Locality, text: shortfall is " in verdict["sentence"]
    assert verdict["lines"]["edit"].startswith("Edit score 0.")


def test_an_edit_that_does_nothing_is_named_and_no_proof_of_locality(home):
    # catches: locality of 1 sold as certain, a reliability of 0 that is "nothing to do", no word on the empty edit
    summary = summary_of(run(home, model="base", base=None, edit=["none.safetensors"]))
    assert (
        "No answer differs from that of the base: as far as these questions show, nothing is edited."
        in (summary["warnings"])
    )
    kept, failed = (level(summary, f"shortfall:{m}") for m in ("text_locality", "reliability"))
    assert (kept["value"], failed["value"]) == (0.0, 1.0)
    assert 0.3 < kept["high"] == kept["smallest_detectable"]
    assert summary["evidence"]["verdict"]["answer"] == "mend it"
    assert summary["evidence"]["headline"]["statistic"] in {f"shortfall:{m}" for m in
        ("reliability", "text_generality", "image_generality", "joint_generality")}  # fmt: skip
    assert summary["evidence"]["headline"]["value"] == 1.0


def test_few_edits_are_measured_and_not_judged(home, requests, tmp_path):
    # catches: a verdict from five edits, a warning that counts questions
    few = dump(tmp_path / "five.jsonl", [row_of(request, tmp_path) for request in requests[:5]])
    summary = summary_of(run(home, edits=few))
    verdict = summary["evidence"]["verdict"]
    assert (verdict["word"], verdict["primary"]) == ("measured", "mean:edit_score")
    assert verdict["next_steps"] == ["Hand in 6 edits or more: fewer show no shortfall."]
    assert verdict["sentence"].startswith("Edit score 0.")
    assert summary["warnings"] == ["5 edits: with fewer than 6 no shortfall is told from chance."]
    assert summary["data"]["edits"] == 5


def test_what_the_base_answers_already_is_left_out(home, requests, small_world, tmp_path):
    # catches: an edit that never had to be made, counted as one that holds
    country = next(f for f in small_world[0].countries if requests[0].id.endswith(f.code))
    known = dataclasses.replace(requests[0].edit, answer=country.taught("capital"))
    rows = [row_of(request, tmp_path) for request in requests[1:]]
    rows.append({"id": "known", "prompt": known.prompt, "target": known.answer, "image": f"{requests[0].id}.png"})
    put(known.image, tmp_path / f"{requests[0].id}.png")
    summary = summary_of(run(home, edits=dump(tmp_path / "e.jsonl", rows)))
    assert summary["data"]["edits"] == 5
    assert "1 request left out, which the base answers already." in summary["warnings"]


def test_the_page_opens_offline_and_holds_no_text(home, requests, whole):
    # catches: a prompt, a target or a picture in report, table or settings
    build_report(whole)
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", page)
    assert requests[0].id in page
    assert "Is every other answer as it was before" in page
    texts = [q.prompt for r in requests for own in environments(r).test.values() for q in own if len(q.prompt) > 20]
    for file in (one for one in whole.rglob("*") if one.is_file()):
        data = file.read_bytes()
        assert not [text for text in texts if text.encode() in data]


def test_gates_and_the_command_line(home):
    # catches: options that are not passed on, a gate that does not know a slice, a proposal of another audit
    call = [str(x) for x in ("audit", "edit", home / "base", "--edits", home / "edits.jsonl", "--edit",
                             home / "all.safetensors", "--out", home / "cli")]  # fmt: skip
    done = CliRunner().invoke(app, [*call, "--json", "--fail-if", "shown AND headline > 0.05"])
    assert done.exit_code == 1, done.output
    summary = json.loads(done.output[: done.output.rindex("}") + 1])
    assert summary["data"]["edit_files"] == ["all.safetensors"]
    gates = {'"mean:other_image" < 0.9': True, '"mean:reliability_written low" < 0.5': False}
    assert {gate: fail_if(summary, gate) for gate in gates} == gates
    files = [str(home / name) for name in ("merged", "base", "edits.jsonl")]
    told = CliRunner().invoke(app, ["audit", *files]).output.split()
    assert told == ["upright", "audit", "edit", files[0], "--base", files[1], "--edits", files[2]]


@pytest.mark.parametrize("shape", ["mmedit", "vlkeb"])
def test_lines_of_mmedit_and_vlkeb_give_what_own_keys_give(home, requests, tmp_path, shape):
    # catches: a key that is lost on the way from the command line, a list that is read as a text
    own = [{**row, **{key: row[key][:1] for key in ("rephrase", "loc", "m_loc", "m_loc_q", "portability")}}
           for row in (row_of(request, tmp_path) for request in requests[:1])]  # fmt: skip
    for row in own:
        row["portability"][0].pop("image")
    theirs = [{
        "id": row["id"], "src": row["prompt"], "alt": row["target"], "pred": "x", "image": row["image"], "cond": "x",
        "rephrase": row["rephrase"][0], "loc": row["loc"][0], "loc_ans": "x", "m_loc": row["m_loc"][0],
        "m_loc_q": row["m_loc_q"][0], "m_loc_a": "x",
        "portability": {"Question": row["portability"][0]["question"], "Answer": row["portability"][0]["answer"]},
    } for row in own]  # fmt: skip
    for row in theirs if shape == "vlkeb" else ():
        row |= {key: [row[key]] for key in ("alt", "rephrase", "loc", "loc_ans", "m_loc", "m_loc_q", "m_loc_a")}
        row["port_new"] = [{"port_type": "1-hop", "Q&A": row.pop("portability")}]
    (tmp_path / "theirs.json").write_text(json.dumps(theirs), encoding="utf-8")
    dump(tmp_path / "own.jsonl", own)
    found = []
    for name in ("own.jsonl", "theirs.json"):
        call = ["audit", "edit", home / "merged", "--base", home / "base", "--edits", tmp_path / name, "--out",
                tmp_path / name[:3]]  # fmt: skip
        done = CliRunner().invoke(app, [*map(str, call), "--json"])
        assert done.exit_code == 0, done.output
        (folder,) = (tmp_path / name[:3]).iterdir()
        found.append(rows_of(folder))
    assert found[0] == found[1]
    assert len({row["environment"] for row in found[0]}) == 9


@pytest.fixture(scope="module")
def text_home(tmp_path_factory):
    """A model of text alone, an edit of it, and requests without pictures."""
    folder, names = tmp_path_factory.mktemp("text"), ["Ada", "Bo", "Cem", "Dee", "Eva", "Fay", "Gus", "Hal"]
    tokenizer = tiny_tokenizer([f"Who keeps the {n} house? {n} keeps it." for n in names], vocabulary=300)
    tokenizer.model_max_length = 128
    model = tiny_llama(tokenizer, hidden=32, layers=2, context=128)
    own = [EditRequest(n, Question(f"Who keeps the {n} house?", m), loc=(Question(f"Where is {m}?", ""),))
           for n, m in zip(names[:6], names[2:], strict=True)]  # fmt: skip
    dump(folder / "edits.jsonl", [row_of(request, folder) for request in own])
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    merged_copy(model, [learn(model, tokenizer, own, editor="dense")], folder / "merged", tokenizer)
    return folder


def test_a_model_of_text_alone_is_audited_without_pictures(text_home):
    # catches: a processor that is asked of a tokenizer, environments of pictures that count as 0
    summary = summary_of(run(text_home))
    assert level(summary, "mean:reliability")["value"] == 1.0
    found = {x["metric"] for x in summary["evidence"]["levels"]}
    assert {"text_generality", "text_locality", "edit_score"} < found
    assert not [metric for metric in found if "image" in metric]


def test_bad_input_is_refused_and_leaves_nothing(home, text_home, requests, tmp_path):
    huge, picture, line = io.BytesIO(), f"{requests[0].id}.png", row_of(requests[0], tmp_path)
    Image.new("1", (5000, 4000)).save(huge, "PNG")
    (tmp_path / "huge.png").write_bytes(huge.getvalue())
    (tmp_path / "torn.png").write_bytes((tmp_path / picture).read_bytes()[:60])
    rows = {
        "web": {"image": "https://example.org/a.png"}, "torn": {"image": "torn.png"}, "huge": {"image": "huge.png"},
    }  # fmt: skip
    files = {name: dump(tmp_path / f"{name}.jsonl", [line | change]) for name, change in rows.items()}
    files["both"] = dump(tmp_path / "both.jsonl", [line, line | {"id": "again", "target": "Rome"}])
    below, kinds = "a path below the folder of the file, or a data: URL", "PNG, JPEG, WebP, GIF or BMP"
    base = ("the model before and after", "pass base=FOLDER, or the edits as edit=FILE")
    other = load_edit(home / "all.safetensors")
    dataclasses.replace(other, facts={"base": "0" * 64}).save(tmp_path / "other.safetensors")
    mine = base_checksum(flags.teach(flags.world(0, small=True))[0])[:12]
    for folder, options, error in (
        (home, {"edits": files["web"]}, ("web.jsonl line 1: image 'https://example.org/a.png', a web address",
                                         below, "copy it there: nothing else is read")),
        (home, {"edits": files["torn"]}, ("torn.jsonl line 1: image 'torn.png', which cannot be read", kinds,
                                          "save it again")),
        (home, {"edits": files["huge"]}, ("huge.jsonl line 1: image 'huge.png' of 5000 x 4000 pixels",
                                          "at most 16,777,216", "save it smaller")),
        (home, {"edits": files["both"]}, (f"both.jsonl line 2: request again wants another answer than request "
                                          f"{requests[0].id} to the same question",
                                          "one target for a question about a picture", "leave one of the two out")),
        (text_home, {"edits": home / "edits.jsonl"},
         ("edits.jsonl line 1: key 'image', for a model of text alone", "requests without images",
          "leave the key out, or take a model that reads images")),
        (home, {"base": text_home / "merged", "edits": text_home / "edits.jsonl"},
         ("merged with another tokenizer than merged", "the same tokens before and after",
          "name the base that this model was edited from")),
        (home, {"model": "base", "base": None, "edit": [tmp_path / "other.safetensors"]},
         ("an edit of the weights 000000000000", f"the weights at hand, {mine}",
          "take the model that the edit was made for")),
        (home, {"base": "merged"}, ("merged as its own base and without an edit", *base)),
        (home, {"base": None}, ("merged without a base and without an edit", *base)),
        (home, {"edits": {"prompt": ["a"]}}, ("a dict", "paths: pictures lie beside the requests",
                                              "save it as a file")),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            run(folder, out=tmp_path / "none", **options)
        assert caught.value.args == error
    assert not (tmp_path / "none").exists()


def test_a_copy_of_the_base_is_no_edited_model(home, small_world, tmp_path):
    # catches: locality of 1 of a folder that a tool never wrote to
    small_world[1].save_pretrained(tmp_path / "copy")
    small_world[2].save_pretrained(tmp_path / "copy")
    with pytest.raises(InputError) as caught:
        run(home, model=tmp_path / "copy", out=tmp_path / "none")
    assert caught.value.args == (
        "copy with the weights of base: nothing is edited", "an edited model",
        "name the folder that the tool wrote, or the edits as edit=FILE",
    )  # fmt: skip
