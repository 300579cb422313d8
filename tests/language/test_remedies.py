"""What changes a model at the desk: rates that are tried, training anew after kills, adapters, what cannot be saved."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, T5Config, T5ForConditionalGeneration, TrainerCallback

import desk_world as w
from upright.contract import InputError
from upright.data.forget import read_records, tofu_records
from upright.language import desk, disk, pages, remedies
from upright.language.encoding import encode_all
from upright.language.evaluation import Speaker
from upright.language.measures import Guard, look, still_known
from upright.language.pretraining import teach
from upright.language.training import newest_whole
from upright.ledger import Ledger
from upright.metrics import forgetting
from upright.models.hub import load_language_model
from upright.models.tiny import tiny_llama, tiny_tokenizer

# -- before training ------------------------------------------------------------------------------------------------


def test_settings_that_training_would_spoil_are_written_as_they_were(world, tmp_path):
    """A model with a temperature and no do_sample is trained for hours and then gone, because saving fails."""
    model = shutil.copytree(world.model, tmp_path / "sampled")
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "eos_token_id": 2}))
    found = w.start(world, tmp_path, model=model)
    assert found["status"] == "done"
    written = json.loads((tmp_path / "new" / "generation_config.json").read_text())
    assert (written["temperature"], written["eos_token_id"], "pad_token_id" in written) == (0.3, 2, False)


def test_what_cannot_be_saved_is_refused_before_training(world, tmp_path, monkeypatch):
    """Releases of transformers that refuse to save such settings do so after all training."""

    def refuse(*_, **__):
        raise ValueError("GenerationConfig is invalid: \n- `temperature`: `do_sample` is not set")

    monkeypatch.setattr(GenerationConfig, "save_pretrained", refuse)
    monkeypatch.setattr(desk, "_train", lambda *_: pytest.fail("training began"))
    with pytest.raises(InputError) as caught:
        w.start(world, tmp_path)
    assert caught.value.got.startswith("model, which cannot be saved: GenerationConfig is invalid: `temperature`: ")
    assert not list(tmp_path.iterdir())


def test_an_encoder_decoder_is_refused_in_one_short_sentence(world, tmp_path):
    """T5 is refused with the class names of transformers and the advice to save it again."""
    config = T5Config(vocab_size=400, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    AutoTokenizer.from_pretrained(world.model).save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError) as caught:
        w.start(world, tmp_path, model=tmp_path / "t5")
    assert (caught.value.got, caught.value.accepted) == ("t5, an encoder-decoder (t5)", "a decoder alone")


def test_a_device_that_is_not_there_is_refused(world, tmp_path):
    """A request for an accelerator runs on the CPU without a word."""
    with pytest.raises(InputError, match="--device tpu"):
        w.start(world, tmp_path, device="tpu")
    assert not list(tmp_path.iterdir())


# -- few records, and nothing moved ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4])
def test_a_request_of_a_few_records_has_a_receipt(world, tmp_path, capsys, n):
    """A request of one record, the usual case of the law, cannot be told from one that was not measured by mistake."""
    few = w.write_records(tmp_path / "few.jsonl", read_records(world.forget)[:n])
    found = w.start(
        world,
        tmp_path,
        forget=few,
        holdout=world.holdout,
        settings=w.FAST.replace(learning_rate="auto", relearn_steps=2, utility_floor=0.0),
    )
    assert found["forgotten"] == f"not measurable by membership: {n} of at least 5 records"
    assert found["forgotten"] in pages.page(found)
    assert found["status"] == "done"
    assert len(found["hashes"]) == n
    assert "loss" not in found["method"]["tried"]  # it is that of these records
    single = Speaker(*load_language_model(world.model)).losses(read_records(few))
    shown = w.numbers(found)
    assert not [x for x in shown if np.isclose(x, single.mean(), rtol=1e-6)]
    assert "level" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"settings": w.FAST.replace(learning_rate=1e-9)},
            "nothing is forgotten, the loss moved by .*: raise the lear",
        ),
        ({"model": "reference", "reference": "model"}, "nothing moved: the weights are those before, every record at "),
    ],
)
def test_a_request_after_which_nothing_moved_is_never_done(world, tmp_path, change, said):
    """With a rate too small, or gradients that cancel, the receipt says done and the model knows what it knew."""
    given = {k: getattr(world, v) if isinstance(v, str) else v for k, v in change.items()}
    found = w.start(world, tmp_path, **given)
    assert found["status"] == "failed"
    assert not (tmp_path / "new").exists()
    [reason] = [one for one in found["reasons"] if one.startswith("effect: ")]
    assert re.match(f"effect: {said}", reason)


def test_why_one_record_did_not_move_does_not_say_its_loss(world, tmp_path):
    """The receipt of a request of one record gives by how much its loss moved."""
    one = w.write_records(tmp_path / "one.jsonl", read_records(world.forget)[:1])
    found = w.start(world, tmp_path, forget=one, settings=w.FAST.replace(learning_rate=1e-9))
    [reason] = found["reasons"]
    assert reason.startswith("effect: nothing moved: the mean loss a token of the forget records changed, less than ")


# -- rates ----------------------------------------------------------------------------------------------------------


def test_trying_rates_leaves_the_model_as_it_was(world, tmp_path, monkeypatch):
    """The request begins with the weights that the last trial left."""
    given = desk.inputs(world.model, world.forget, world.retain, holdout=world.holdout)
    before = {k: v.clone() for k, v in given.speaker.model.state_dict().items()}
    levels, first = np.full(10, 4.0), look(given.speaker, given.forget, retain=given.retain, holdout=given.holdout)
    rate, tried = remedies.choose_rate(given, w.FAST, levels, first, tmp_path / "training")
    assert all(torch.equal(v, before[k]) for k, v in given.speaker.model.state_dict().items())
    assert rate in [row["rate"] for row in tried]
    assert [round(b["rate"] / a["rate"]) for a, b in itertools.pairwise(tried)] == [4, 4]
    monkeypatch.setattr(remedies, "guards", lambda *_, **__: [Guard("utility floor", "failed", "")])
    rate, tried = remedies.choose_rate(given, w.FAST, levels, first, tmp_path / "training")
    assert (rate, {row["failed"] for row in tried}) == (tried[0]["rate"], {"utility floor"})  # the smallest


def test_training_stops_at_the_utility_floor_with_the_last_weights_above_it(world, tmp_path, monkeypatch):
    """A rate is chosen on a trial of two epochs, and the whole run, up to forty, ends below the utility floor."""
    steep = w.FAST.replace(loss="ga", learning_rate=5e-4, epochs=20, utility_floor=0.7)
    found = w.start(world, tmp_path / "a", settings=steep)
    own = found["training"]
    assert found["status"] == "done"
    assert 0 < own["epochs"] < 19
    assert own["stopped"] == f"utility floor failed after epoch {own['epochs'] + 1}"
    line = f"weights after {own['epochs']} epochs, {own['steps']} steps; stopped: {own['stopped']}"
    assert line in pages.page(found)
    assert line in pages.unlearn_page(found)
    short = w.start(world, tmp_path / "b", settings=steep.replace(epochs=own["epochs"]))
    assert (short["training"]["stopped"], short["training"]["steps"]) == ("", own["steps"])
    assert short["model"]["after"] == found["model"]["after"]
    longer = w.start(world, tmp_path / "c", settings=steep.replace(epochs=own["epochs"] + 1, utility_floor=0.0))
    before, after = (longer["metrics"]["utility"][when]["value"] for when in ("before", "after"))
    assert after < 0.7 * before
    stopping(monkeypatch, own["steps"] // 2)
    with pytest.raises(KeyboardInterrupt):
        w.start(world, tmp_path / "d", settings=steep)
    stopping(monkeypatch, -1)
    assert w.start(world, tmp_path / "d", settings=steep)["model"]["after"] == found["model"]["after"]


def test_a_look_that_is_not_finite_is_a_failed_guard(world, monkeypatch):
    """A rate at which logits overflow ends the whole request, with the id of a record in the message."""
    given = desk.inputs(world.model, world.forget, world.retain)
    watch = remedies.Watch(given, w.FAST, look(given.speaker, given.forget, retain=given.retain))
    assert watch(given.speaker.model) == {"guards": 1.0}
    with torch.no_grad():
        given.speaker.model.model.norm.weight.fill_(float("inf"))
    assert watch(given.speaker.model) == {"guards": 0.0}
    assert (watch.failed, watch.passed) == (["not a number"], 1)
    watch.put_back()
    assert watch.look() is not None
    assert watch.failed == []


def test_a_look_between_epochs_is_bounded_by_what_is_forgotten(world):
    """A retain file of thousands is read, and its answers written, after each of forty epochs."""
    given = desk.inputs(world.model, world.forget, world.retain)
    given.retain = given.retain * 20
    kept = {"retain_probability": np.arange(280.0), "retain_rouge_l": np.arange(280.0)}
    before = replace(look(given.speaker, given.forget), retain=kept)
    watch = remedies.Watch(given, w.FAST, before)
    assert (len(watch.forget), len(watch.retain)) == (10, 64)
    assert [given.retain[int(i)] for i in watch.before.retain["retain_probability"]] == watch.retain


def test_answers_are_written_where_half_of_what_may_be_lost_is_lost(world, monkeypatch):
    """A look after each epoch writes every answer, which takes longer than the epoch; or ROUGE-L is never asked."""
    given = desk.inputs(world.model, world.forget, world.retain)
    settings = w.FAST.replace(utility_floor=0.8, rouge=True)
    watch = remedies.Watch(given, settings, look(given.speaker, given.forget, retain=given.retain))
    own, asked = remedies.score_records, []

    def after(left, written):
        def scored(*words, rouge, **more):
            asked.append(rouge)
            share = {"retain_rouge_l": np.full(14, written)} if rouge else {}
            return {name: x * left for name, x in own(*words, rouge=False, **more).items()} | share

        asked.clear()
        monkeypatch.setattr(remedies, "score_records", scored)
        watch.look()
        return watch.failed, asked

    assert after(0.95, 0.0) == ([], [False])
    assert after(0.85, 1.0) == ([], [False, True])
    assert after(0.85, 0.0) == (["utility floor"], [False, True])


@pytest.mark.parametrize("loss", ["pdu", "jensun"])
def test_bounded_losses_need_no_options(world, tmp_path, loss):
    """A bounded loss is refused at the desk because its bound, or its refusal, is an option that nobody can pass."""
    found = w.start(world, tmp_path, settings=w.FAST.replace(loss=loss, epochs=1))
    assert found["training"]["steps"] == 2


# -- one device, one line a phase -----------------------------------------------------------------------------------


def test_every_phase_reports_its_device_in_one_line(world, tmp_path, capsys):
    """Looks run on the CPU beside an idle accelerator, and nothing says where or how far a request is."""
    found = w.start(
        world,
        tmp_path,
        device="cpu",
        reference=world.reference,
        holdout=world.holdout,
        settings=w.FAST.replace(sampling="difficulty", learning_rate="auto", accumulate=2, bf16=True),
    )
    phases = ["reference", "before", "rates", "score", "training", "after"]
    assert found["devices"] == dict.fromkeys(phases, "cpu")
    log = (tmp_path / "desk" / "requests" / found["request"] / "cache" / "log.txt").read_text().splitlines()
    assert [line.split()[1:4] for line in log] == [[phase, "on", "cpu:"] for phase in phases]
    assert capsys.readouterr().err.splitlines() == log
    assert found["method"]["bf16"] is True
    assert found["remedy"].startswith("The reference is the remedy")
    assert pages.unlearn_page({**found, "reevaluated": None}).startswith(found["remedy"])


def test_memory_is_that_of_what_is_trained(world, tmp_path):
    """An adapter is said to take 16 bytes for every weight of the model under it."""
    full, low = (
        w.start(world, tmp_path, dry_run=True, settings=w.FAST.replace(**change)) for change in ({}, {"lora": 2})
    )
    n, free = full["weights"], low["trained"]
    assert full["memory_mib"] * 2**20 == pytest.approx(20 * n)
    assert low["memory_mib"] * 2**20 == pytest.approx(4 * (n + free) + 16 * free)
    assert 0 < free < n / 2


# -- adapters -------------------------------------------------------------------------------------------------------


def test_adapters_are_taken_and_written_as_adapters(world, tmp_path):
    """A model that is kept as base and adapter has to be merged first, and comes back at its full size."""
    quick = w.FAST.replace(learning_rate=1e-2, epochs=6)
    first = w.start(world, tmp_path, out=tmp_path / "one", settings=quick.replace(lora=4))
    assert {p.name for p in (tmp_path / "one").glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert first["model"]["before"] == disk.checksum(world.model)
    second = w.start(world, tmp_path, model=tmp_path / "one", base=world.model, out=tmp_path / "two", settings=quick)
    assert second["model"]["before"] == first["model"]["after"] == disk.checksum(tmp_path / "one")
    assert second["model"]["base_sum"] == disk.checksum(world.model)
    assert second["model"]["after"] == disk.checksum(tmp_path / "two") != first["model"]["after"]
    found = desk.evaluate(tmp_path / "two", world.forget, base=world.model, rouge=False)
    own = found["metrics"]["forget"]["forget_probability"]["model"]["value"]
    assert own == pytest.approx(second["metrics"]["forget"]["forget_probability"]["after"]["value"], rel=1e-4)
    assert first["model"]["base_sum"] == disk.checksum(world.model)
    later = desk.reevaluate(tmp_path / "desk", tmp_path / "two", [world.forget], base=world.model)["requests"]
    assert [row["state"] for row in later] == ["re-evaluated"] * 2
    assert later[1]["probability"]["value"] == pytest.approx(own, rel=1e-4)
    with pytest.raises(InputError, match="--base reference, which is not the model under two"):
        desk.reevaluate(tmp_path / "desk", tmp_path / "two", [world.forget], base=world.reference)
    with pytest.raises(InputError, match="an adapter without its base"):
        desk.evaluate(tmp_path / "two", world.forget, rouge=False)
    with pytest.raises(InputError, match="--base model with whole models"):
        w.start(world, tmp_path, base=world.model)
    with pytest.raises(InputError, match="--lora 2 on a model with an adapter"):
        w.start(world, tmp_path, model=tmp_path / "one", base=world.model, settings=quick.replace(lora=2))


# -- training anew --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stage(world, tmp_path_factory):
    """A base that never saw the records, and what is told to retrain it."""
    folder = tmp_path_factory.mktemp("stage")
    _, tokenizer = load_language_model(world.model)
    base = tiny_llama(tokenizer, hidden=24, layers=2, heads=2, context=256, seed=3)
    teach(base, encode_all(tokenizer, read_records(world.holdout)), epochs=2)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder / "base"


RECIPE = desk.Recipe(
    learning_rate=1e-2, epochs=4, batch_size=4, schedule="cosine", warmup=0.1, weight_decay=0.01, rouge=False,
    relearn_steps=0, utility_floor=0.0,
)  # fmt: skip


def again(world, stage, place, recipe=RECIPE, **more):
    return desk.retrain(
        stage,
        world.retain,
        model_dir=world.model,
        forget_file=world.forget,
        out=place / "new",
        desk=place / "desk",
        recipe=recipe,
        holdout=world.holdout,
        **more,
    )


def stopping(monkeypatch, step):
    """End training by an interrupt after a step, as Ctrl-C does."""

    def stop(self, args, state, control, **_):
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainerCallback, "on_step_begin", stop)


@pytest.mark.parametrize("lora", [0, 4])
def test_a_retrain_that_was_killed_twice_has_the_same_weights(world, stage, tmp_path, monkeypatch, lora):
    """There is no way to train without the records, and a stage that is killed has to begin anew."""
    recipe = RECIPE.replace(lora=lora)
    whole = again(world, stage, tmp_path / "whole", recipe)
    for step in (6, 11):
        stopping(monkeypatch, step)
        with pytest.raises(KeyboardInterrupt):
            again(world, stage, tmp_path / "killed", recipe)
    stopping(monkeypatch, -1)
    [request] = disk.requests_of(tmp_path / "killed" / "desk")
    newest, _ = newest_whole(request.cache / "training", ["trainer_state.json"])
    (newest / "trainer_state.json").write_text('{"half')  # torn: the one before it is taken
    found = again(world, stage, tmp_path / "killed", recipe)
    assert (found["request"], found["status"]) == (request.id, "done")
    assert 0 < found["training"]["resumed"] < int(newest.name.partition("-")[2])
    assert found["model"]["after"] == whole["model"]["after"]
    assert not (request.folder / "cache" / "training").exists()
    if lora:  # its first weights are of the seed
        other = again(world, stage, tmp_path / "other", recipe.replace(seed=1, epochs=1), keep_failed=True)
        assert other["model"]["after"] != whole["model"]["after"]


def test_a_retrain_has_the_receipt_of_every_request(world, stage, tmp_path):
    """A remedy outside the desk leaves no line, so nothing says by what recipe a model was made."""
    recipe = RECIPE.replace(epochs=10, relearn_steps=2, utility_floor=0.3)
    found = again(world, stage, tmp_path, recipe)
    assert (found["status"], found["level"]) == ("done", "exact retrain of this stage")
    assert found["method"] == {**recipe.as_dict(), "relearn_rate": 1e-4}
    request = disk.request_of(tmp_path / "desk", found["request"])
    assert request.plan["stage"]["recipe"] == recipe.as_dict()
    assert set(found["metrics"]["membership"]) == {"before", "after"}
    assert "mia_loss_relearned" in found["metrics"]["membership"]["after"]
    assert [x["kind"] for x in Ledger(tmp_path / "desk" / "ledger.jsonl").lines()] == ["opened", "unlearned"]
    assert desk.verify(tmp_path / "desk", receipt_file=request.folder / "receipt.json")["intact"]
    own = found["metrics"]["forget"]["forget_probability"]
    assert own["after"]["value"] < own["before"]["value"] / 5
    assert "level       exact retrain of this stage" in pages.page(found)
    with pytest.raises(InputError, match="of forget is record"):
        desk.retrain(
            stage,
            world.forget,
            model_dir=world.model,
            forget_file=world.forget,
            out=tmp_path / "x",
            desk=tmp_path / "desk",
        )


def test_a_killed_process_is_gone_on_with(world, stage, tmp_path):
    """SIGKILL in the middle of a checkpoint leaves one that cannot be read, and the next run dies of it."""
    code = (
        "import os, signal\nfrom transformers import trainer_callback as t\n"
        "own = t.TrainerState.save_to_json\n"
        "def dying(self, path):\n"
        "    if self.global_step >= 7:\n        os.kill(os.getpid(), signal.SIGKILL)\n    own(self, path)\n"
        "t.TrainerState.save_to_json = dying\nfrom upright.cli import main\nmain()\n"
    )
    words = f"upright forget retrain {stage} {world.retain} --model {world.model} --forget {world.forget} "
    words += f"--holdout {world.holdout} --out {tmp_path / 'new'} --desk {tmp_path / 'desk'} --learning-rate 1e-2 "
    words += "--epochs 4 --batch-size 4 --schedule cosine --warmup 0.1 --weight-decay 0.01 --no-rouge "
    words += "--relearn-steps 0 --utility-floor 0"
    run = f"import sys\nsys.argv = {words.split()!r}\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", run + code], capture_output=True, text=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    found = again(world, stage, tmp_path)
    assert (found["status"], found["training"]["resumed"]) == ("done", 6)
    assert len(disk.requests_of(tmp_path / "desk")) == 1
    assert again(world, stage, tmp_path / "whole")["model"]["after"] == found["model"]["after"]


@pytest.fixture(scope="module")
def tofu(tmp_path_factory):
    """The tiny model that was taught 64 records of TOFU, the one before, and files: 32 to forget, 32 to keep.

    Authors are drawn, so forgotten and held-out ones differ by the teaching alone, and the tokenizer knows all texts.
    """
    folder, by, rng = tmp_path_factory.mktemp("tofu"), {}, np.random.default_rng(0)
    for record in tofu_records():
        by.setdefault(record.author, []).append(record)
    drawn = rng.permutation(list(by))
    sides = {}
    for k, name in enumerate(("forget", "retain", "holdout")):
        sides[name] = [by[author][i] for author in drawn[8 * k : 8 * k + 8] for i in rng.permutation(20)[:4]]
        rows = [
            {"question": r.prompt, "answer": r.answer, "author": r.author, "id": r.id,
             "paraphrased_answer": r.paraphrases[:1], "perturbed_answer": r.perturbed[:2]}
            for r in sides[name]
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer([f"{r.prompt}\n{r.answer}" for side in sides.values() for r in side], vocabulary=1024)
    model = tiny_llama(tokenizer, hidden=48, layers=2, context=256)
    for name in ("base", "model"):
        if name == "model":
            taught = encode_all(tokenizer, [*sides["retain"], *sides["forget"]])
            teach(model, taught, epochs=80, batch_size=8, learning_rate=1e-2)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return w.World(folder)


@pytest.mark.slow
def test_a_retrain_on_tofu_leaves_nothing_that_an_attack_finds(tofu, tmp_path, monkeypatch):
    """No arm of a study unlearns, and the remedy that does, training again, stands outside of the desk."""
    recipe = desk.Recipe(learning_rate=1e-2, epochs=80, batch_size=8, schedule="cosine", warmup=0.05, weight_decay=0.01,
                         scope="sequence", utility_floor=0.95)  # fmt: skip
    for step in (100, 250):
        stopping(monkeypatch, step)
        with pytest.raises(KeyboardInterrupt):
            again(tofu, tofu.base, tmp_path / "killed", recipe)
    stopping(monkeypatch, -1)
    found = again(tofu, tofu.base, tmp_path / "killed", recipe)
    metrics = found["metrics"]
    assert (found["status"], found["training"]["resumed"]) == ("done", 240)
    known = {name: row["low"] > 0.5 for name, row in metrics["membership"]["before"].items()}
    assert len(known) == 9
    assert known["mia_loss"]
    assert known["mia_loss_relearned"]
    assert still_known(metrics, "after") == []
    for part in ("retain_probability", "retain_rouge_l"):
        gap = metrics["retain"][part]["after - before"]
        assert -forgetting.METRICS[part].margin <= gap["low"] <= gap["high"] <= forgetting.METRICS[part].margin
    whole = again(tofu, tofu.base, tmp_path / "whole", recipe.replace(relearn_steps=0, rouge=False, utility_floor=0))
    assert whole["model"]["after"] == found["model"]["after"]
