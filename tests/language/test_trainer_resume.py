"""Resume: a run that was killed at any step ends bit-equal, and another run is refused."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from tiny_trainer import Kill, Killed, split
from upright.contract import InputError
from upright.data.forget import Record
from upright.language import training
from upright.language.encoding import encode_all
from upright.language.trainer import UnlearnArguments, UnlearnTrainer
from upright.models.tiny import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:nothing is forgotten")  # runs of a few steps
WORDS = ["the", "river", "town", "keeps", "nine", "old", "boats", "and", "one", "quiet", "clock", "under", "a", "hill"]
RMU = {"loss": "rmu", "loss_options": {"layer": 0, "scale": 1.0}}
PDU = {"loss": "pdu", "loss_options": {"warmup": 0.5}}  # its bound is measured before
MRD = {"sampling": "mrd", "refresh": 1, "scoring": {"probes": 2, "check_scaling": False}}


@functools.cache
def data():
    """Tokenizer, forget and retain records, encoded; answers have 1 to 7 words."""
    rng = np.random.default_rng(0)
    say = lambda high: " ".join(rng.choice(WORDS, rng.integers(1, high)))  # noqa: E731
    records = [Record(f"{say(5)} {i}?", say(8), id=str(i)) for i in range(16)]
    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in records], vocabulary=300)
    encoded = encode_all(tokenizer, records)
    return tokenizer, encoded[:10], encoded[10:]


def tiny(seed=0):
    """A model with dropout, so that generators must come back too."""
    model = tiny_llama(data()[0], hidden=16, layers=2, heads=2, seed=seed)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    return model


def make(folder, *, seed=0, kill=None, forget=None, args=None, **options):
    tokenizer, own, kept = data()
    changes = {
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "steps", "save_steps": 1,
        "num_train_epochs": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "learning_rate": 5e-3, "lr_scheduler_type": "cosine", "seed": 3, **(args or {}),
    }  # fmt: skip
    settings, options = split({"loss": "npo", **options})
    arguments = UnlearnArguments(output_dir=str(folder), **changes, **settings)
    return UnlearnTrainer(
        tiny(seed), own if forget is None else forget, kept, processing_class=tokenizer,
        args=arguments, callbacks=[] if kill is None else [Kill(kill)], **options,
    )  # fmt: skip


def state(one):
    """Weights, moments of the optimiser and what is ours, all as tensors."""
    out = {f"model.{name}": value for name, value in one.model.state_dict().items()}
    inner = one.optimizer.optimizer if hasattr(one.optimizer, "optimizer") else one.optimizer
    for k, p in enumerate(p for group in inner.param_groups for p in group["params"]):
        out |= {f"moment.{k}.{name}": value for name, value in inner.state.get(p, {}).items()}
    tensors, values = one.schedule.state()
    out |= tensors
    out |= {f"sums.{side}": sums for side, sums in one.reference.sums.items()}
    if one.control_vector is not None:
        out["control"] = one.control_vector
    numbers = [one.alpha, values["epoch"], values["prepared"], *values["scored"], one.lr_scheduler.get_last_lr()[0]]
    return out | {"numbers": torch.tensor(numbers, dtype=torch.float64)}


def assert_same(one, other):
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@functools.cache
def whole(name):
    """The run that is never stopped: 9 steps in 3 epochs."""
    import tempfile

    one = make(tempfile.mkdtemp(), args={"save_strategy": "no"}, **KINDS[name])
    one.train()
    assert one.state.global_step == 9
    return one


KINDS = {
    "mrd": MRD,
    "rmu": {**RMU, **MRD},
    "pdu": PDU,
    "kl": {"loss": "npo", "retain_loss": "kl", "sampling": "uniform"},
}


@pytest.mark.parametrize(("name", "at"), [("mrd", 1), ("mrd", 3), ("mrd", 4), ("mrd", 6), ("mrd", 7), ("rmu", 3),
                                          ("rmu", 5), ("pdu", 2), ("pdu", 6), ("kl", 4)])  # fmt: skip
def test_a_killed_run_ends_bit_equal(tmp_path, name, at):
    # killed between two micro-batches, in an epoch (1, 2, 4, 5, 7) and at its border (3, 6). Catches: scores of another
    # epoch, weights of another epoch, a vector drawn again (spec 4.1), a reference of the present weights,
    # a dual factor that starts again, an order that depends on what was drawn before, dropout of another stream
    with pytest.raises(Killed):
        make(tmp_path, kill=at, **KINDS[name]).train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{k + 1}" for k in range(at)]
    again = make(tmp_path, **KINDS[name])
    again.train(resume_from_checkpoint=True)
    assert_same(again, whole(name))
    if name == "pdu":
        assert again.alpha != 1.0


def test_the_tests_above_can_fail(tmp_path, monkeypatch):
    # the plant: a run that goes on without our part of the checkpoint is another run
    with pytest.raises(Killed):
        make(tmp_path, kill=4, **MRD).train()
    again = make(tmp_path, **MRD)
    monkeypatch.setattr(again.schedule, "load", lambda *_: again.schedule.start(again.model))
    again.train(resume_from_checkpoint=True)
    with pytest.raises(AssertionError, match="difficulty"):
        assert_same(again, whole("mrd"))


def test_a_run_killed_twice_and_saved_by_epoch_ends_bit_equal(tmp_path):
    # catches a state that is right once alone, and scores that are due when an epoch's checkpoint is written
    args = {"save_strategy": "epoch"}
    for at in (5, 7):
        with pytest.raises(Killed):
            make(tmp_path, kill=at, args=args, **MRD).train(resume_from_checkpoint=at == 7)
    again = make(tmp_path, args=args, **MRD)
    again.train(resume_from_checkpoint=True)
    assert_same(again, whole("mrd"))


def test_sums_come_from_the_checkpoint(tmp_path):
    # catches a reference that is computed again from what happens to be loaded: here another model
    with pytest.raises(Killed):
        make(tmp_path, kill=2, **MRD).train()
    again = make(tmp_path, seed=9, **MRD)
    again.train(resume_from_checkpoint=True)
    assert_same(again, whole("mrd"))


def test_records_forgotten_before_stay_out(tmp_path):
    # catches targets that are lost with the process
    targets = np.where(np.arange(10) < 6, np.inf, 0.0)
    options = {"sampling": "uniform", "targets": targets}
    one = make(tmp_path / "a", args={"save_strategy": "no"}, **options)
    one.train()
    with pytest.raises(Killed):
        make(tmp_path / "b", kill=4, **options).train()
    again = make(tmp_path / "b", **options)
    again.train(resume_from_checkpoint=True)
    assert_same(again, one)
    assert not again.schedule.weights[6:].any()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint after one step of MRD sampling with given scores."""
    folder = tmp_path_factory.mktemp("run")
    make(folder, args={"max_steps": 1}, sampling="mrd", difficulty=np.arange(1.0, 11)).train()
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"forget": "fewer"}, "forget records = "),
        ({"forget": "order"}, "forget records = "),
        ({"loss": "simnpo"}, 'loss = "simnpo", and "npo"'),
        ({"loss_options": {"beta": 0.2}}, "loss_options = "),
        ({"gamma": 2.0}, r"gamma = 2\.0, and 1\.0"),
        ({"retain_loss": None}, "retain_loss = null"),
        ({"sampling": "uniform", "difficulty": None}, 'sampling = "uniform"'),
        ({"tau": 0.5}, r"tau = 0\.5"),
        ({"floor": 0.5}, r"floor = 0\.5"),
        ({"refresh": 2}, "refresh = 2"),
        ({"difficulty": np.arange(10.0)}, "difficulty = "),
        ({"targets": np.ones(10)}, "targets = "),
        ({"scope": "sequence"}, 'scope = "sequence"'),
        ({"args": {"per_device_train_batch_size": 3}}, "effective batch = 6, and 4"),
        ({"args": {"seed": 4}}, "seed = 4, and 3"),
        ({"reference": "model"}, 'reference = "model"'),
    ],
)
def test_another_run_is_refused(checkpoint, changes, words):
    # spec 6: a changed forget set above all; each names what differs
    changes = dict(changes)
    own = data()[1]
    if "forget" in changes:
        changes["forget"] = own[:9] if changes["forget"] == "fewer" else own[::-1]
        changes.setdefault("difficulty", np.arange(1.0, len(changes["forget"]) + 1))
    if changes.get("reference") == "model":
        changes["reference"] = tiny(1)
    options = {"sampling": "mrd", "difficulty": np.arange(1.0, 11), **changes}
    with pytest.raises(InputError, match=words) as error:
        make(checkpoint, **options).train(resume_from_checkpoint=True)
    assert "new run" in error.value.todo


@pytest.mark.parametrize("loss", ["npo", "rmu"])
def test_another_start_model_is_refused(tmp_path, loss):
    # catches a frozen copy of the wrong model: distributions are in no checkpoint
    options = RMU if loss == "rmu" else {"loss": loss, "retain_loss": "kl"}
    make(tmp_path, args={"max_steps": 1}, **options).train()
    with pytest.raises(InputError, match="not the reference of the checkpoint"):
        make(tmp_path, seed=1, **options).train(resume_from_checkpoint=True)


TORN = ["model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json", training.STATE]


def test_a_torn_newest_checkpoint_is_passed_over_and_named(tmp_path):
    """A checkpoint whose newest files were cut short by a crash ended the run, though a whole one stood beside it."""
    with pytest.raises(Killed):
        make(tmp_path, kill=4, **MRD).train()
    newest, before = tmp_path / "checkpoint-4", tmp_path / "checkpoint-3"
    (tmp_path / "checkpoint-x").mkdir()
    for name in TORN:
        whole_file = (newest / name).read_bytes()
        (newest / name).write_bytes(whole_file[:-20])
        with pytest.warns(UserWarning, match=rf"from checkpoint-3: checkpoint-4 \({name}\) not whole"):
            assert training.last_complete(tmp_path) == str(before)
        (newest / name).write_bytes(whole_file)
    assert training.last_complete(tmp_path) == str(newest)
    (newest / "trainer_state.json").unlink()
    again = make(tmp_path, **MRD)
    with pytest.warns(UserWarning, match="not whole"):
        again.train(resume_from_checkpoint=True)
    assert_same(again, whole("mrd"))


def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path):
    # a damaged or foreign one that was named, and none at all
    make(tmp_path, args={"max_steps": 1}).train()
    folder = tmp_path / "checkpoint-1"
    tensors, values = training.read_state(folder)
    training.write_state(folder, tensors, {**values, "version": 1})
    with pytest.raises(InputError, match=r"checkpoint-1 of version 1"):
        training.read_state(folder)
    (folder / training.STATE).write_bytes(b"")
    with pytest.raises(InputError, match=r"checkpoint-1 without a readable upright_state"):
        make(tmp_path).train(resume_from_checkpoint=str(folder))
    with pytest.raises(InputError, match=r"no complete checkpoint in .* checkpoint-1 \(upright_state.safetensors\)"):
        make(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="no complete checkpoint in 'empty'"):
        make(tmp_path / "empty").train(resume_from_checkpoint=True)


def test_checkpoints_hold_no_record(tmp_path):
    # DESIGN, small print: no text that was to be forgotten in our own files; tokens are text as well
    make(tmp_path, args={"max_steps": 1}, **MRD).train()
    tensors, values = training.read_state(tmp_path / "checkpoint-1")
    assert set(tensors) == {"weights", "sums.forget", "difficulty.0", "before"}
    assert all(len(values["settings"][name]) == 64 for name in ("forget records", "retain records"))
