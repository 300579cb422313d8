"""After a request: numbers against other implementations, receipts, purge, a second look at earlier requests."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score

import desk_world as w
from upright.contract import InputError
from upright.data.forget import read_records
from upright.language import desk, disk, measures, pages, receipts
from upright.language.evaluation import Speaker
from upright.ledger import Ledger
from upright.metrics import membership
from upright.models.hub import load_language_model

# -- numbers --------------------------------------------------------------------------------------------------------


def test_aggregates_agree_with_other_implementations(world, finished):
    # catches a swapped difference, an AUC the wrong way, a utility over other parts, a test of folded ratios
    place, found = finished
    sides = [read_records(getattr(world, name)) for name in ("forget", "retain", "holdout")]
    looks = {}
    for name, folder in (("before", world.model), ("after", place / "new"), ("reference", world.reference)):
        model, tokenizer = load_language_model(folder)
        looks[name] = measures.look(Speaker(model, tokenizer), sides[0], retain=sides[1], holdout=sides[2], rouge=False)
    row = found["metrics"]["forget"]["extraction_strength"]
    gap = looks["after"].forget["extraction_strength"] - looks["before"].forget["extraction_strength"]
    assert row["after - before"]["value"] == pytest.approx(gap.mean(), abs=1e-9)
    assert "before - after" not in row
    positive = np.repeat([1, 0], [10, 8])
    for attack, got in found["metrics"]["membership"]["after"].items():
        scores = np.concatenate([looks["after"].forget[attack], looks["after"].holdout[attack]])
        assert got["value"] == pytest.approx(roc_auc_score(positive, scores))
        base = np.concatenate([looks["reference"].forget[attack], looks["reference"].holdout[attack]])
        assert got["privleak"] == pytest.approx(membership.privleak(got["value"], roc_auc_score(positive, base)))
    assert found["metrics"]["utility"]["parts"] == ["retain_probability", "retain_truth_ratio"]
    parts = [looks["after"].retain[p].mean() for p in found["metrics"]["utility"]["parts"]]
    assert found["metrics"]["utility"]["after"]["value"] == pytest.approx(hmean(parts), rel=1e-4)
    ratio = [1 / looks[name].forget["forget_truth_probability"] - 1 for name in ("after", "reference")]
    assert found["metrics"]["forget_quality"]["p"] == pytest.approx(ks_2samp(*ratio, method="exact").pvalue)


def test_aggregates_are_means_with_paired_intervals():
    # catches draws that depend on the metric or not on the seed, authors drawn apart, and a mean of few records
    values = np.random.default_rng(0).normal(size=400)
    found = measures.aggregate({"x": values, "y": values + 1}, seed=3)
    width = found["x"]["high"] - found["x"]["low"]
    assert width == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)  # 2,000 draws: 5 s.e. of a width are 6 %
    assert found["y"]["low"] == pytest.approx(found["x"]["low"] + 1)
    assert (found["x"]["n"], found["x"]["value"]) == (400, pytest.approx(values.mean()))
    assert measures.aggregate({"x": values}, seed=3)["x"] == found["x"]
    assert measures.aggregate({"x": values}, seed=4)["x"] != found["x"]
    twice = measures.aggregate({"x": np.repeat(values, 2)}, seed=3, authors=[str(i // 2) for i in range(800)])["x"]
    assert twice["high"] - twice["low"] == pytest.approx(width, rel=0.06)
    assert measures.aggregate({"x": np.r_[values[:4], np.full(10, np.nan)]}, seed=0)["x"] is None


def test_evaluate_writes_json_and_agrees_with_the_receipt(world, finished, tmp_path):
    # catches an evaluation that measures otherwise than a request does, and one that cannot be run twice
    place, found = finished
    desk.evaluate(place / "new", world.forget, out=tmp_path / "e.json", rouge=False)
    own = desk.evaluate(place / "new", world.forget, world.retain, holdout=world.holdout, reference=world.reference,
                        out=tmp_path / "e.json", rouge=False)  # fmt: skip
    assert json.loads((tmp_path / "e.json").read_text()) == own
    for metric, row in own["metrics"]["forget"].items():
        other = found["metrics"]["forget"][metric]
        for mine, theirs in (
            ("model", "after"),
            ("reference", "reference"),
            ("model - reference", "after - reference"),
        ):
            if row[mine] is not None:
                assert row[mine]["value"] == pytest.approx(other[theirs]["value"], abs=1e-5)
    assert own["reference"] == "reference"
    alone = desk.evaluate(place / "new", world.forget, rouge=False)
    assert alone["reference"] == "none available"
    assert alone["metrics"]["utility"] is None


def test_a_dry_run_says_what_it_takes_and_changes_nothing(world, tmp_path):
    # catches a dry run that opens a request or trains
    before = w.contents(world.root)
    found = w.start(
        world,
        tmp_path,
        dry_run=True,
        reference=world.reference,
        settings=w.FAST.replace(sampling="difficulty", epochs=3),
    )
    assert found["passes"]["training"].startswith("6 steps: 3 times 10 records")
    assert found["passes"]["evaluation"] == "3 times 54 texts"  # 10 with 3 other answers each, and 14 kept ones
    assert found["minutes"] > 0
    model, _ = load_language_model(world.model)
    assert found["weights"] == sum(p.numel() for p in model.parameters())
    assert found["passes"]["guards"] == "3 times 24 records"
    assert found["memory_mib"] == pytest.approx(20 * found["weights"] / 2**20)
    assert w.contents(world.root) == before
    assert not list(tmp_path.iterdir())


def test_a_dry_run_meets_the_same_errors(world, tmp_path):
    # catches a rehearsal that skips the checks
    with pytest.raises(InputError, match="of forget is record"):
        w.start(world, tmp_path, dry_run=True, retain=world.forget)


def test_score_keeps_numbers_in_the_desk_and_returns_aggregates(world, tmp_path):
    # catches scores in the ledger or beside the model
    before = w.contents(world.root)
    found = desk.score(world.model, world.forget, desk=tmp_path / "desk", probes=4)
    rows = json.loads((tmp_path / "desk" / "requests" / found["request"] / "scores.json").read_text())
    assert found["difficulty"]["probes"] == 4
    assert found["difficulty"]["mrd"]["n"] == len(rows["mrd"]) == 10
    assert not set(w.numbers(Ledger(tmp_path / "desk" / "ledger.jsonl").lines())) & set(rows["mrd"] + rows["nll"])
    assert w.contents(world.root) == before
    with pytest.raises(InputError, match="inside the model folder"):
        desk.score(world.model, world.forget, desk=world.model)


def test_the_same_request_twice_gives_the_same_weights(world, tmp_path):
    # catches sampling or training outside the seed
    one, two = (w.start(world, tmp_path, out=tmp_path / n, settings=w.FAST.replace(epochs=1)) for n in "ab")
    assert one["model"]["after"] == two["model"]["after"] != one["model"]["before"]
    assert one["hashes"] != two["hashes"]


# -- afterwards -----------------------------------------------------------------------------------------------------


def test_a_receipt_can_be_written_again_and_is_checked_against_its_line(finished, tmp_path):
    # catches a receipt that was edited, and a ledger that lost the line of a receipt
    place, found = finished
    own = shutil.copytree(place / "desk", tmp_path / "desk")
    again = desk.receipt(own, found["request"])
    assert {k: v for k, v in again.items() if k != "ledger"} == {k: v for k, v in found.items()
                                                                 if k not in ("ledger", "reevaluated")}  # fmt: skip
    file = own / "requests" / found["request"] / "receipt.json"
    assert desk.verify(own, receipt_file=file)["intact"]
    forged = {**again, "status": "exact retrain"}
    (tmp_path / "forged.json").write_text(json.dumps(forged))
    bad = desk.verify(own, receipt_file=tmp_path / "forged.json")
    assert (bad["intact"], bad["reason"]) == (
        False,
        f"the receipt says something else than line {again['ledger']['line']} and what followed about status",
    )
    lines = (own / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (own / "ledger.jsonl").write_bytes(b"".join(lines[:1]))
    assert desk.verify(own)["intact"], "truncation alone leaves no trace"
    assert not desk.verify(own, receipt_file=file)["intact"]
    assert not desk.verify(own, head=found["ledger"]["head"])["intact"]


def _forged(change):
    def forge(receipt):
        out = json.loads(json.dumps(receipt))
        change(out)
        return out

    return forge


FORGED = {
    "since": _forged(lambda r: r.update(since=[])),
    "artefacts": _forged(lambda r: r.update(artefacts=[])),
    "certified": _forged(lambda r: r.update(certified=True)),
    "purged": _forged(lambda r: r.update(purged=1)),
    "guards": _forged(lambda r: r.pop("guards")),
    "level": _forged(lambda r: r.update(level="exact retrain")),
    "time": _forged(lambda r: r["ledger"].update(time="2020-01-01T00:00:00Z")),
    "line": _forged(lambda r: r["ledger"].update(line=1)),
    "signed": _forged(lambda r: r["ledger"].update(signed=True)),
    "signed as a number": _forged(lambda r: r["ledger"].update(signed=0)),
    "more": _forged(lambda r: r["ledger"].update(more=1)),
}


@pytest.mark.parametrize("name", FORGED)
def test_every_part_of_a_receipt_is_checked(world, finished, tmp_path, name):
    # catches a receipt whose bad news was taken out, or that claims more than its line
    place, found = finished
    own = shutil.copytree(place / "desk", tmp_path / "desk")
    ledger = Ledger(own / "ledger.jsonl")
    ledger.append(
        "re-evaluated", {"requests": [{"request": found["request"], "state": "not re-evaluable", "why": "x"}]}
    )
    good = desk.receipt(own, found["request"])
    assert good["since"]
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(good))
    assert desk.verify(own, receipt_file=file)["intact"]
    file.write_text(json.dumps(FORGED[name](good)))
    checked = desk.verify(own, receipt_file=file)
    assert not checked["intact"]
    assert checked["reason"].startswith("the receipt ")


def test_a_receipt_stays_good_when_more_happens(finished, tmp_path):
    # catches a check against the newest line: a receipt of yesterday would turn red with a purge
    place, found = finished
    own = shutil.copytree(place / "desk", tmp_path / "desk")
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(desk.receipt(own, found["request"])))
    desk.purge(own, found["request"])
    assert desk.verify(own, receipt_file=file)["intact"]
    later = desk.receipt(own, found["request"])
    assert later["purged"] is not None
    file.write_text(json.dumps({**later, "purged": None}))
    assert "purged" in desk.verify(own, receipt_file=file)["reason"]


@pytest.mark.parametrize(
    "place_of",
    [lambda p: {**p, "hash": "0" * 64}, lambda p: {**p, "hash": "f" * 64}, lambda p: {**p, "hash": p["previous"]},
     lambda p: {**p, "hash": "0" * 64, "head": "0" * 64}, lambda p: {**p, "head": p["previous"]},
     lambda p: {**p, "hash": ["a"]}, lambda p: [], lambda p: None],
)  # fmt: skip
def test_a_receipt_of_no_line_is_an_error_with_three_parts(finished, tmp_path, place_of):
    # catches a traceback for a hash that is in no line, of another line, or none at all
    place, found = finished
    receipt = {k: v for k, v in found.items() if k != "reevaluated"}
    previous = Ledger(place / "desk" / "ledger.jsonl").lines()[found["ledger"]["line"] - 1]["previous"]
    (tmp_path / "r.json").write_text(
        json.dumps({**receipt, "ledger": place_of({**found["ledger"], "previous": previous})})
    )
    with pytest.raises(InputError) as caught:
        desk.verify(place / "desk", receipt_file=tmp_path / "r.json")
    assert all((caught.value.got, caught.value.accepted, caught.value.todo))
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(InputError, match="without its place"):
        desk.verify(place / "desk", receipt_file=tmp_path / "r.json")


def test_no_receipt_from_a_ledger_that_was_edited(finished, tmp_path):
    # catches a receipt that vouches for forged numbers
    place, found = finished
    own = shutil.copytree(place / "desk", tmp_path / "desk")
    text = (own / "ledger.jsonl").read_text().replace('"status":"done"', '"status":"perfect"')
    (own / "ledger.jsonl").write_text(text)
    with pytest.raises(InputError, match="broken at line 2"):
        desk.receipt(own, found["request"])


def test_purge_destroys_what_is_secret_and_the_ledger_stays(world, finished, tmp_path):
    # catches a salt that stays somewhere, and a purge that breaks the chain
    place, found = finished
    own = shutil.copytree(place / "desk", tmp_path / "desk")
    folder = own / "requests" / found["request"]
    salt, old = (folder / "salt").read_bytes(), (own / "ledger.jsonl").read_bytes()
    done = desk.purge(own, found["request"])
    assert done["destroyed"] == ["salt", "scores.json", "cache"]
    assert "SSD" in done["note"]
    assert {p.name for p in folder.iterdir()} == {"plan.json", "receipt.json", "receipt.txt"}
    assert not [p for p in own.rglob("*") if p.is_file() and salt in p.read_bytes()]
    assert (own / "ledger.jsonl").read_bytes().startswith(old)
    check = desk.verify(own, head=found["ledger"]["head"])
    assert (check["intact"], check["lines"]) == (True, done["ledger"])
    again = desk.receipt(own, found["request"])
    assert again["purged"] == done["ledger"]
    assert not {"salt", "scores", "cache"} & {a["what"] for a in again["artefacts"]}
    with pytest.raises(InputError, match="without its salt"):
        disk.request_of(own, found["request"]).hashes(read_records(world.forget))
    assert desk.listing(own)[0]["purged"]
    assert desk.purge(own, found["request"])["destroyed"] == []


def test_purge_destroys_what_a_crash_left(finished, tmp_path):
    # catches one number a record in the half-written file of a run that was killed
    place, found = finished
    own = shutil.copytree(place / "desk", tmp_path / "desk")
    request = disk.request_of(own, found["request"])
    (request.folder / "scores.json.part").write_text('{"mrd": [1.5')
    assert "half-written file" in {a["what"] for a in receipts.artefacts(request, request.plan)}
    assert "scores.json.part" in desk.purge(own, found["request"])["destroyed"]
    assert not list(request.folder.glob("*.part"))


def test_purge_overwrites_before_it_deletes(tmp_path, monkeypatch):
    # catches a delete that leaves the bytes of the salt in free blocks of a disk that writes in place
    request = disk.Request.new(tmp_path)
    salt, seen = request.salt, []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **k: (seen.append(self.read_bytes()), unlink(self, **k))[1])
    request.purge()
    assert len(seen[0]) == 32
    assert seen[0] != salt


def test_earlier_requests_are_measured_again_where_all_their_records_are_supplied(world, finished, tmp_path):
    # catches requests that are forgotten about, matched by place instead of hash, or measured after a purge
    place, found = finished
    own = shutil.copytree(place / "desk", tmp_path / "desk")
    later = w.write_records(tmp_path / "later.jsonl", read_records(world.retain)[:6])
    keep = w.write_records(tmp_path / "keep.jsonl", read_records(world.retain)[6:])
    half = w.write_records(tmp_path / "half.jsonl", read_records(world.forget)[:7][::-1])
    rest = w.write_records(tmp_path / "rest.jsonl", read_records(world.forget)[7:])
    common = {"desk": own, "settings": w.FAST.replace(epochs=1)}
    second = desk.unlearn(place / "new", later, keep, out=tmp_path / "two", earlier=[half, rest], **common)
    row = second["reevaluated"]["requests"][0]
    assert (row["request"], row["state"], row["matched"], row["of"]) == (found["request"], "re-evaluated", 10, 10)
    model, tokenizer = load_language_model(tmp_path / "two")
    own_p = np.exp(-Speaker(model, tokenizer).read(read_records(world.forget)).mean_nll)
    assert row["probability"]["value"] == pytest.approx(own_p.mean(), rel=1e-4)
    assert desk.receipt(own, found["request"])["since"][0]["line"] == second["reevaluated"]["ledger"]
    assert "re-evaluated on 10 of 10 records" in pages.page(desk.receipt(own, found["request"]))
    rows = desk.reevaluate(own, tmp_path / "two", [later])["requests"]
    assert [r["state"] for r in rows] == ["not re-evaluable", "re-evaluated"]
    assert rows[0]["why"] == "its records were not supplied"
    desk.purge(own, found["request"])
    rows = desk.reevaluate(own, tmp_path / "two", [half, rest, later])["requests"]
    assert rows[0]["why"].startswith("it was purged")
    assert rows[1]["state"] == "re-evaluated"
    assert desk.verify(own)["intact"]


def test_an_earlier_request_is_measured_in_its_own_form(world, tmp_path):
    """Measured as question and answer, what was forgotten as running text seems to have come back."""
    found = w.start(world, tmp_path, settings=w.FAST.replace(template="raw", epochs=1))
    [row] = desk.reevaluate(tmp_path / "desk", tmp_path / "new", [world.forget])["requests"]
    then = found["metrics"]["forget"]["forget_probability"]["after"]
    assert row["probability"]["value"] == pytest.approx(then["value"], rel=1e-4)


@pytest.mark.parametrize(
    ("supplied", "why"), [(9, "9 of its 10 "), (5, "5 of its 10 "), (4, "fewer than 5 of its 10 ")]
)
def test_a_part_of_a_request_is_not_measured(world, finished, tmp_path, supplied, why):
    # catches two means in the ledger whose difference is the score of one record, and a count of few
    place, found = finished
    own = shutil.copytree(place / "desk", tmp_path / "desk")
    some = w.write_records(tmp_path / "some.jsonl", read_records(world.forget)[:supplied])
    row = desk.reevaluate(own, place / "new", [some])["requests"][0]
    assert row["state"] == "not re-evaluable"
    assert row["why"] == f"{why}records were supplied: pass all"
    assert set(row) == {"request", "of", "kept_again", "state", "why"}
    assert w.numbers(row) == []
    assert why in pages.page(desk.receipt(own, found["request"]))


def test_what_comes_back_is_noticed(world, finished, tmp_path, monkeypatch):
    # catches later training that restores what was forgotten: here it gives the new model the old weights again
    place, found = finished
    own = shutil.copytree(place / "desk", tmp_path / "desk")
    assert desk.reevaluate(own, place / "new", [world.forget])["requests"][0]["came_back"] is False

    monkeypatch.setattr(desk, "_train", restored(world))
    later = w.write_records(tmp_path / "later.jsonl", read_records(world.retain)[:6])
    keep = w.write_records(tmp_path / "keep.jsonl", read_records(world.retain)[6:])
    second = desk.unlearn(place / "new", later, keep, out=tmp_path / "two", desk=own, settings=w.FAST,
                          earlier=[world.forget])  # fmt: skip
    row = second["reevaluated"]["requests"][0]
    assert row["came_back"] is True
    assert "it came back" in pages.page(desk.receipt(own, found["request"]))
    # a child of the child, which the ledger knows by two requests
    assert desk.reevaluate(own, tmp_path / "two", [world.forget])["requests"][0]["came_back"] is True


def restored(world):
    """Return a stand-in for training that loads the weights of the source model."""

    def train(request, given, *_):
        given.speaker.model.load_state_dict(load_language_model(world.model)[0].state_dict())
        return w.no_training(request, given)

    return train


def test_another_line_of_models_is_not_judged(world, finished, tmp_path, monkeypatch):
    # catches "it came back" about a model that never forgot: false evidence, kept in the ledger for good
    place, found = finished
    own = shutil.copytree(place / "desk", tmp_path / "desk")
    before = (own / "ledger.jsonl").read_bytes()
    again = desk.reevaluate(own, world.model, [world.forget])
    row = again["requests"][0]
    assert row == {"request": found["request"], "of": 10, "state": "not comparable", "why": "another line of models"}
    assert again["ledger"] is None
    assert (own / "ledger.jsonl").read_bytes() == before
    assert pages.said(row) == "another line of models: not comparable"
    # a request that begins with the source model once more is a sister of the first, not its child
    monkeypatch.setattr(desk, "_train", w.no_training)
    later = w.write_records(tmp_path / "later.jsonl", read_records(world.retain)[:6])
    keep = w.write_records(tmp_path / "keep.jsonl", read_records(world.retain)[6:])
    second = w.start(world, tmp_path, forget=later, retain=keep, earlier=[world.forget])
    assert [r["state"] for r in second["reevaluated"]["requests"]] == ["not comparable"]
    assert "another line of models: not comparable" in pages.unlearn_page(second)
    assert desk.receipt(own, found["request"])["since"] == []
    assert [x["kind"] for x in Ledger(own / "ledger.jsonl").lines()][-1] == "unlearned"


def test_ancestors_follow_the_requests_of_a_ledger():
    # catches children taken for parents, a chain of one step, a failed request as a link, and a loop without end
    chain = [("a", "b"), ("b", "c"), ("b", "d"), ("d", "d"), ("c", None), ("x", "y")]
    requests = [{"model": {"before": one, "after": two}} for one, two in chain]
    assert receipts.ancestors(requests, "c") == {"a", "b", "c"}
    assert receipts.ancestors(requests, "d") == {"a", "b", "d"}
    assert receipts.ancestors(requests, "a") == {"a"}
    assert receipts.ancestors([*requests, {"model": {"before": "c", "after": "a"}}], "a") == {"a", "b", "c"}
    assert receipts.ancestors([{"model": {"output": None}}], "a") == {"a"}


def test_earlier_records_in_the_retain_file_are_reported(world, finished, tmp_path, monkeypatch):
    # catches a later request that teaches the forgotten records again without a word
    place, found = finished
    own = shutil.copytree(place / "desk", tmp_path / "desk")
    monkeypatch.setattr(desk, "_train", w.no_training)
    both = w.write_records(tmp_path / "both.jsonl", [*read_records(world.retain)[6:], *read_records(world.forget)[:6]])
    later = w.write_records(tmp_path / "later.jsonl", read_records(world.retain)[:6])
    second = desk.unlearn(place / "new", later, both, out=tmp_path / "two", desk=own, settings=w.FAST)
    row = second["reevaluated"]["requests"][0]
    assert row["kept_again"] == 6
    assert "; 6 of them stood in the retain file: they were taught again" in pages.page(
        desk.receipt(own, found["request"])
    )
    few = w.write_records(tmp_path / "few.jsonl", [*read_records(world.retain)[6:], *read_records(world.forget)[:2]])
    third = desk.unlearn(place / "new", later, few, out=tmp_path / "three", desk=own, settings=w.FAST)
    assert third["reevaluated"]["requests"][0]["kept_again"] is None
    assert "fewer than 5 of them stood in the retain file" in pages.said(third["reevaluated"]["requests"][0])


def test_failed_requests_are_listed_as_not_re_evaluable(world, tmp_path, monkeypatch):
    # catches a measure of forgetting for a request that changed no model
    Ledger(tmp_path / "desk" / "ledger.jsonl").append(
        "unlearned", {"request": "20260101-000000-abcdef", "hashes": ["a"], "model": {"output": None}, "metrics": {}}
    )
    row = desk.reevaluate(tmp_path / "desk", world.model, [world.forget])["requests"][0]
    assert (row["state"], row["why"]) == ("not re-evaluable", "it failed and left no model")


@pytest.mark.parametrize("name", ["../../etc", "", "20260101-000000-zzzzzz", "20260101-000000-abcdef", "/"])
def test_a_request_is_a_name_and_no_path(finished, name):
    # catches a purge outside of the desk
    place, found = finished
    with pytest.raises(InputError, match="at the desk") as caught:
        desk.purge(place / "desk", name)
    assert found["request"] in caught.value.accepted


def test_a_signed_desk_needs_its_key(world, tmp_path, monkeypatch):
    # catches a key that is dropped between the verbs
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    monkeypatch.setattr(desk, "_train", w.no_training)
    found = w.start(world, tmp_path, key=key)
    assert found["ledger"]["signed"]
    assert desk.verify(tmp_path / "desk", key=key)["signed"]
    with pytest.raises(InputError, match="signed lines"):
        desk.purge(tmp_path / "desk", found["request"])
    assert desk.receipt(tmp_path / "desk", found["request"], key=key)["status"] == "done"


def test_repeated_records_count_once_and_are_mentioned(world, tmp_path, monkeypatch):
    # catches a record that weighs twice because it stands in the file twice
    monkeypatch.setattr(desk, "_train", w.no_training)
    records = read_records(world.forget)
    twice = w.write_records(tmp_path / "twice.jsonl", [*records, records[0], records[3]])
    found = w.start(world, tmp_path, forget=twice)
    assert found["records"]["forget"] == 10
    assert "2 repeated records of the forget file count once" in found["warnings"]


def test_verify_without_a_ledger_is_an_error(tmp_path):
    # catches "all lines hold" about a desk that is not there
    with pytest.raises(InputError, match="no ledger at the desk nowhere"):
        desk.verify(tmp_path / "nowhere")


def test_torch_generators_stay_as_they_were(world, tmp_path):
    # catches a verb that reseeds what a user's own program draws from
    torch.manual_seed(5)
    state = torch.get_rng_state()
    desk.evaluate(world.model, world.forget, rouge=False)
    assert torch.equal(state, torch.get_rng_state())
