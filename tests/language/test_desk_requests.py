"""Requests of the forgetting desk: what is written, what a receipt gives away, guards and early stop."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import desk_world as w
from upright.data.forget import digest, read_records, tofu_records
from upright.language import desk, disk, measures, pages, receipts
from upright.language.evaluation import Speaker
from upright.ledger import Ledger
from upright.models.hub import load_language_model

# -- a request that ends well ---------------------------------------------------------------------------------------


def test_a_request_writes_a_model_that_loads_and_leaves_the_source(world, finished):
    # catches a model saved before training, a changed source, checksums of the wrong folder
    place, found = finished
    assert found["status"] == "done"
    assert found["level"] == "approximate, empirical evidence only"
    assert found["model"]["before"] == disk.checksum(world.model)
    assert found["model"]["after"] == disk.checksum(place / "new") != found["model"]["before"]
    model, tokenizer = load_language_model(place / "new")
    own = measures.look(Speaker(model, tokenizer), read_records(world.forget), rouge=False)
    row = found["metrics"]["forget"]["forget_probability"]
    assert own.forget["forget_probability"].mean() == pytest.approx(row["after"]["value"], rel=1e-5)
    assert row["after"]["high"] < row["before"]["low"]
    assert found["training"]["steps"] > 0


def test_the_checksum_is_that_of_the_weights(world, tmp_path):
    # catches a checksum that leaves bytes or names out, by an independent computation
    shutil.copytree(world.model, tmp_path / "copy")
    weights = (tmp_path / "copy" / "model.safetensors").read_bytes()
    line = f"model.safetensors {hashlib.sha256(weights).hexdigest()}\n"
    assert disk.checksum(tmp_path / "copy") == hashlib.sha256(line.encode()).hexdigest()
    (tmp_path / "copy" / "config.json").write_text("{}")
    assert disk.checksum(tmp_path / "copy") == disk.checksum(world.model)
    (tmp_path / "copy" / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert disk.checksum(tmp_path / "copy") != disk.checksum(world.model)


def test_hashes_are_salted_and_the_salt_is_secret(world, finished):
    # catches hashes that anybody who guesses a record can confirm, and a salt that others may read
    place, found = finished
    request = disk.request_of(place / "desk", found["request"])
    records = read_records(world.forget)
    salt = (request.folder / "salt").read_bytes()
    assert len(salt) == 32
    expected = sorted(hmac.new(salt, digest(r).encode(), "sha256").hexdigest() for r in records)
    assert found["hashes"] == expected
    everything = (place / "desk" / "ledger.jsonl").read_text() + (request.folder / "receipt.json").read_text()
    assert not [r for r in records if digest(r) in everything]
    assert request.folder.stat().st_mode & 0o077 == 0
    assert (request.folder / "salt").stat().st_mode & 0o077 == 0
    for path in [place / "desk", *(place / "desk").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path.name
    other = disk.Request.new(place / "other")
    assert not set(other.hashes(records)) & set(expected)


def test_one_number_a_record_stays_in_the_request(world, finished):
    # catches scores beside the wrong records, and text in the file of scores
    place, found = finished
    request = disk.request_of(place / "desk", found["request"])
    rows, records = json.loads((request.folder / "scores.json").read_text()), read_records(world.forget)
    assert rows["id"] == [r.id for r in records]
    assert rows["hash"] == request.hashes(records)
    assert len(rows["mrd"]) == len(records)
    assert all(a <= b <= c for a, b, c in zip(rows["low"], rows["mrd"], rows["high"], strict=True))
    assert np.mean(rows["mrd"]) == pytest.approx(found["difficulty"]["mrd"]["value"])
    assert not w.telling((request.folder / "scores.json").read_text(), records)


def test_level_code_seeds_and_artefacts_are_named(finished):
    # catches a receipt that leaves out what still holds the data or claims more than it can
    _, found = finished
    assert {"upright", "torch", "transformers"} <= set(found["code"])
    assert found["seeds"] == {"all": 0}
    assert found["method"]["loss"] == "npo"
    assert {a["what"] for a in found["artefacts"]} >= {
        "source model folder", "forget file", "salt", "scores", "checkpoints and optimizer state",
        "logs, backups, copies, caches of other programs",
    }  # fmt: skip
    assert found["early_stop"] == "loss of each record under the reference"
    attacks = {"mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"}
    assert set(found["metrics"]["membership"]["after"]) == {*attacks, *(f"{name}_raw" for name in attacks)}
    assert "no certificate" in pages.page(found)


def test_the_cache_of_training_is_deleted(finished):
    # catches checkpoints with optimizer state that stay in the desk
    place, found = finished
    assert not (place / "desk" / "requests" / found["request"] / "cache" / "training").exists()


# -- receipts give nothing away -------------------------------------------------------------------------------------


def test_receipt_ledger_and_page_hold_no_text_of_any_record(world, finished):
    # catches a record, a question or a false answer in what is handed out; the search itself is checked first
    place, found = finished
    records = [r for name in ("forget", "retain", "holdout") for r in read_records(getattr(world, name))]
    planted = json.dumps({**found, "note": records[3].answer})
    assert w.telling(planted, records, w.vocabulary())
    folder = place / "desk" / "requests" / found["request"]
    for file in (
        folder / "receipt.json",
        folder / "receipt.txt",
        folder / "plan.json",
        place / "desk" / "ledger.jsonl",
    ):
        assert w.telling(file.read_text(), records, w.vocabulary()) == [], file.name


def test_receipt_and_ledger_hold_no_score_of_one_record(world, finished):
    # catches minima, quartiles, medians and per-record lists: any number that one record has by itself
    place, found = finished
    request = disk.request_of(place / "desk", found["request"])
    held = json.loads((request.folder / "scores.json").read_text())
    single = w.numbers({k: v for k, v in held.items() if k != "tokens"})
    for name in ("model", "reference", "new"):
        model, tokenizer = load_language_model(place / name if name == "new" else getattr(world, name))
        speaker = Speaker(model, tokenizer)
        own = measures.look(speaker, read_records(world.forget), holdout=read_records(world.holdout), rouge=False)
        tables = {**own.forget, "nll": own.reading.mean_nll, **{f"h{k}": v for k, v in own.holdout.items()}}
        single += [x for v in tables.values() for x in v.tolist() if x not in (0.0, 1.0) and np.isfinite(x)]
    single = np.array(single)
    given = w.numbers(found) + [n for line in Ledger(place / "desk" / "ledger.jsonl").lines() for n in w.numbers(line)]
    given = [x for x in given if x not in (0.0, 1.0)]
    assert np.isclose(single, single[3], rtol=1e-6).any(), "the search finds what is planted"
    rows = [row for one in found["metrics"]["membership"].values() for row in (one or {}).values()]
    gaps = [x for row in rows for x in w.numbers(row.get("gap") or {})]
    # a difference of AUC over 10 by 8 records is k / 160 whatever the scores are, and so are some shares of tokens
    chance = [x for x in gaps if abs(160 * x - round(160 * x)) < 1e-6]
    hits = [x for x in given if x not in chance and np.isclose(single, x, rtol=1e-6, atol=0).any()]
    assert hits == []


def test_receipts_hold_names_and_no_paths(world, finished):
    # catches a home folder, and with it a person, in a document that is handed out
    place, found = finished
    folder = place / "desk" / "requests" / found["request"]
    text = (folder / "receipt.json").read_text() + (folder / "receipt.txt").read_text()
    text += (place / "desk" / "ledger.jsonl").read_text() + (folder / "plan.json").read_text()
    for path in (world.root, place, Path.home(), w.ROOT):
        assert str(path) not in text
        assert path.name not in text or path.name in ("language", "root")
    assert found["model"]["source"] == "model"


@pytest.mark.parametrize("n", [1, 4])
def test_few_records_have_no_aggregate(world, tmp_path, n):
    # catches a mean over one record, which is its score
    few = w.write_records(tmp_path / "few.jsonl", read_records(world.forget)[:n])
    found = w.start(
        world, tmp_path, forget=few, holdout=world.holdout, settings=w.FAST.replace(sampling="difficulty", epochs=1)
    )
    assert all(v is None for row in found["metrics"]["forget"].values() for v in row.values())
    assert found["metrics"]["membership"] == {"before": None, "after": None}
    assert found["difficulty"] is None
    assert found["at_level"] is None
    assert found["guards"][1]["state"] == "not checked"
    assert f"too few records: with {n} forgotten and 8 of held-out records" in found["guards"][1]["detail"]
    rows = json.loads((tmp_path / "desk" / "requests" / found["request"] / "scores.json").read_text())
    single = rows["mrd"] + rows["nll"]
    for folder in (world.model, tmp_path / "new"):
        model, tokenizer = load_language_model(folder)
        own = measures.look(Speaker(model, tokenizer), read_records(few), rouge=False)
        single += [x for values in [*own.forget.values(), own.reading.mean_nll] for x in values.tolist() if x]
    assert not [x for x in w.numbers(found) if np.isclose(single, x, rtol=1e-6, atol=0).any()]
    assert found["metrics"]["utility"]["after"]["n"] == found["records"]["retain"]
    page = pages.page(desk.receipt(tmp_path / "desk", found["request"]))
    assert "forgotten   not measurable by membership" in page
    assert "utility floor: passed" in page


# -- guards and early stop ------------------------------------------------------------------------------------------


def test_over_unlearning_is_a_failure_and_writes_no_model(world, tmp_path):
    # catches AUC far below 1/2 sold as success: one epoch of steep ascent goes past the reference before it can stop
    harsh = w.FAST.replace(loss="ga", learning_rate=3e-2, epochs=1, batch_size=2, utility_floor=0.0)
    found = w.start(world, tmp_path, reference=world.reference, settings=harsh)
    states = {g["name"]: g["state"] for g in found["guards"]}
    assert states == {"utility floor": "passed", "over-unlearning": "failed", "effect": "passed"}
    assert found["status"] == "failed"
    assert found["reasons"][0].startswith("over-unlearning: far below the level of unseen records: AUC 0.")
    assert not (tmp_path / "new").exists()
    assert found["model"]["output"] is None
    assert "not written" in pages.page(found)


def test_keep_failed_writes_the_model_and_still_says_failed(world, tmp_path):
    # catches a switch that also turns the status
    harsh = w.FAST.replace(loss="ga", learning_rate=2e-2, epochs=1, utility_floor=1.0)
    found = w.start(world, tmp_path, settings=harsh, keep_failed=True)
    assert found["status"] == "failed"
    assert found["reasons"][0].startswith("utility floor: utility ")
    assert found["guards"][1]["state"] == "not checked"
    assert load_language_model(tmp_path / "new")


def test_a_failed_request_says_that_earlier_ones_were_not_measured(world, tmp_path, monkeypatch):
    # catches --earlier that is dropped without a word, in the output or in the receipt
    monkeypatch.setattr(desk, "_train", lambda *_: (None, {"reasons": ["not a number: x"], "facts": {}}))
    said = "earlier requests: not measured, because the request failed"
    other = w.write_records(tmp_path / "earlier.jsonl", tofu_records()[60:66])
    for name, more in (("a", {}), ("b", {"keep_failed": True})):
        found = w.start(world, tmp_path, out=tmp_path / name, earlier=[other], **more)
        assert found["status"] == "failed"
        assert said in pages.unlearn_page(found)
        assert said in pages.page(desk.receipt(tmp_path / "desk", found["request"]))
    assert said not in pages.unlearn_page(w.start(world, tmp_path, out=tmp_path / "c"))


def told(gone, before, after):
    """Return aggregates with these mean probabilities."""
    kept = {"before": before, "after": after}
    return {"forget": {"forget_probability": {"after": gone}}, "retain": {"retain_probability": kept}}


@pytest.mark.parametrize(
    ("means", "lost"),
    [((0.002, 0.5, 0.003), True), ((0.002, 0.5, 0.4), False), ((0.2, 0.5, 0.003), False),
     ((0.002, 0.004, 0.003), False), ((0.002, 0.5, None), False), ((None, 0.5, 0.003), False)],
)  # fmt: skip
def test_a_destroyed_model_is_one_that_lost_both_sides(means, lost):
    # catches a verdict withheld for good forgetting, for a model that never knew anything, or from too few records
    rows = [None if one is None else {"value": one} for one in means]
    assert receipts.destroyed(told(*rows)) is lost
    assert receipts.destroyed({"forget": {}, "retain": {}}) is False


def test_the_verdict_on_a_destroyed_model_is_withheld(world, tmp_path, monkeypatch):
    # catches "none of 4 attacks finds the records" as praise for a model that knows nothing
    def wreck(request, given, *_):
        with torch.no_grad():
            given.speaker.model.lm_head.weight.normal_(0, 30, generator=torch.Generator().manual_seed(0))
        return w.no_training(request, given)

    monkeypatch.setattr(desk, "_train", wreck)
    unseen = w.write_records(tmp_path / "unseen.jsonl", tofu_records()[800:814])
    found = w.start(world, tmp_path, holdout=unseen)
    assert found["status"] == "failed"
    assert found["forgotten"] == "meaningless: the model is destroyed"
    assert not [line for line in found["warnings"] if "by the attack" in line]
    assert desk.listing(tmp_path / "desk")[0]["forgotten"] == found["forgotten"]


def test_a_run_that_diverges_fails_and_leaves_the_source(world, tmp_path):
    # catches NaN weights on disk, and a crash that blames the person
    before = w.contents(world.root)
    found = w.start(world, tmp_path, settings=w.FAST.replace(learning_rate=1e20, epochs=4))
    assert found["status"] == "failed"
    assert found["reasons"][0].startswith("not a number: ")
    assert not (tmp_path / "new").exists()
    assert w.contents(world.root) == before
    json.dumps(found, allow_nan=False)


def fake(forget_nll, holdout_nll=None, retain=None, reference_nll=None):
    forget = {"mia_loss": -np.asarray(forget_nll, dtype=float)}
    holdout = {} if holdout_nll is None else {"mia_loss": -np.asarray(holdout_nll, dtype=float)}
    kept = {} if retain is None else {"retain_probability": np.asarray(retain, dtype=float)}
    return measures.Look(forget, None, kept, holdout)


@pytest.mark.parametrize(
    ("after", "state"), [(0.46, "passed"), (0.4499, "failed"), (0.4501, "passed"), (0.9, "passed")]
)
def test_the_utility_floor_is_relative_to_before(after, state):
    # catches an absolute floor and a strict comparison the other way round
    old, new = fake([1.0], retain=[0.5] * 6), fake([1.0], retain=[after] * 6)
    assert measures.guards(old, new, None, utility_floor=0.9)[0].state == state


def test_over_unlearning_is_judged_by_held_out_records_or_the_reference():
    # catches a guard that looks the wrong way, and one that passes where it could not look
    low, high = np.linspace(1, 2, 20), np.linspace(5, 6, 20)
    assert measures.guards(fake(low), fake(high, low), None, utility_floor=0)[1].state == "failed"
    assert measures.guards(fake(low), fake(low, high), None, utility_floor=0)[1].state == "passed"
    said = [
        measures.guards(fake(low), fake(*sides), None, utility_floor=0)[1].detail
        for sides in ((low, high), (high, low))
    ]
    assert said[0].startswith("not below the level of unseen records: AUC 1.0000 of the loss attack")
    assert said[1].startswith("far below the level of unseen records: AUC 0.0000 of the loss attack")
    assert measures.guards(fake(low), fake(low, low), None, utility_floor=0)[1].state == "passed"
    assert measures.guards(fake(low), fake(high), fake(low), utility_floor=0)[1].state == "failed"
    assert measures.guards(fake(low), fake(high), fake(high), utility_floor=0)[1].state == "passed"
    assert measures.guards(fake(low), fake(high), None, utility_floor=0)[1].state == "not checked"


def test_a_record_at_its_level_is_left_alone(world, tmp_path):
    # catches an early stop that never looks, or looks the other way: the reference never saw the records
    found = w.start(world, tmp_path, model=world.reference, reference=world.model, holdout=world.holdout)
    assert found["training"]["stopped"].startswith("every record at its target before epoch")
    assert found["reasons"][-1].startswith("effect: nothing moved: the weights are those before")
    assert found["at_level"] == found["records"]["forget"]


def test_the_level_that_was_used_is_said(world, tmp_path, monkeypatch):
    # catches a level taken from elsewhere than the receipt says
    seen = []
    monkeypatch.setattr(desk, "_train", lambda r, g, s, levels, *_: (seen.append(levels), w.no_training(r, g))[1])
    found = w.start(world, tmp_path, holdout=world.holdout)
    model, tokenizer = load_language_model(world.model)
    level = Speaker(model, tokenizer).read(read_records(world.holdout)).mean_nll.mean()
    np.testing.assert_allclose(seen[0], np.full(10, level), rtol=1e-5)
    assert found["early_stop"] == "mean loss of the held-out records before"
    again = w.start(world, tmp_path, out=tmp_path / "second")
    assert seen[1] is None
    assert again["early_stop"].startswith("none available")
    assert again["reference"] == "none available"
    third = w.start(world, tmp_path, out=tmp_path / "third", holdout=world.holdout, reference=world.reference)
    model, tokenizer = load_language_model(world.reference)
    np.testing.assert_allclose(seen[2], Speaker(model, tokenizer).read(read_records(world.forget)).mean_nll, rtol=1e-5)
    assert third["reference"] == "reference"


def test_verdict_and_warnings_reach_the_receipt(world, tmp_path, monkeypatch):
    # catches a receipt without what the measures said: this model still knows everything
    monkeypatch.setattr(desk, "_train", w.no_training)
    unseen = w.write_records(tmp_path / "unseen.jsonl", tofu_records()[800:814])
    found = w.start(world, tmp_path, holdout=unseen)
    assert found["forgotten"] == "still known: 8 of 8 attacks find the records"
    assert found["forgotten"] in pages.page(found)
    assert sum("not forgotten by the attack" in said for said in found["warnings"]) == 8
    assert "held-out records set the level" in " ".join(found["notes"])
    assert "trained on" in " ".join(found["notes"])
    for note in found["notes"]:
        assert note in pages.page(found)
    again = w.start(world, tmp_path, out=tmp_path / "b", holdout=unseen, reference=world.reference)
    assert "against the reference" in pages.page(again)
    assert not any("set the level" in note for note in again["notes"])


def test_the_verdict_with_eight_held_out_records_is_that_there_is_none(finished):
    # catches a receipt of a small request that claims a finding
    _, found = finished
    assert found["forgotten"].startswith("not measured: too few records")
    assert found["forgotten"] in pages.page(found)


@pytest.mark.parametrize(("n", "m", "state"), [(6, 6, "not checked"), (7, 7, "failed"), (3, 1000, "not checked")])
def test_a_guard_that_cannot_fail_says_so(n, m, state):
    # catches "passed" where three standard errors reach past AUC = 0: here each forgotten record is less likely
    nll = np.linspace(1, 2, n), np.linspace(0.1, 0.2, m)
    guard = measures.guards(fake(nll[0]), fake(nll[0], nll[1]), None, utility_floor=0)[1]
    assert guard.state == state
    assert ("too few records" in guard.detail) == (state == "not checked")


def test_less_than_five_records_have_no_diagnostics():
    # catches the ratio of one record under the name of a diagnostic, and its warning, in a ledger that is shown around
    class Found:
        mrd = nll = np.ones(5)
        tokens = np.full(5, 3)
        clamped, reliability, scaling, probes, passes, warnings = 0.25, 0.9, 4.1, 4, 13, ("odd",)

    whole = measures.difficulty_of(Found, seed=0)
    assert (whole["clamped"], whole["reliability"], whole["scaling"], whole["warnings"]) == (0.25, 0.9, 4.1, ["odd"])
    Found.mrd = Found.nll = np.ones(4)
    Found.tokens = np.full(4, 3)
    few = measures.difficulty_of(Found, seed=0)
    assert all(few[k] is None for k in ("mrd", "nll", "tokens", "clamped", "reliability", "scaling", "warnings"))
    assert (few["records"], few["probes"]) == (4, 4)
    assert "odd" not in pages.score_page({"request": "a", "ledger": 1, "notes": [], "difficulty": few})
