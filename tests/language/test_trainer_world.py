"""One or two processes on gloo: the same weights at an equal effective batch; sharded weights read as whole ones."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

WORKER = r"""
import json, os, sys
import numpy as np, torch
from upright.data.forget import Record
from upright.language.eisam_trainer import EISAMArguments, EISAMTrainer
from upright.language.encoding import encode_all
from upright.language.trainer import PairCollator, UnlearnArguments, UnlearnTrainer
from upright.models.tiny import tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
out, jobs = sys.argv[1], json.loads(sys.argv[2])
rng = np.random.default_rng(0)
words = "the river town keeps nine old boats and one quiet clock".split()
say = lambda high: " ".join(rng.choice(words, rng.integers(1, high)))
records = [Record(f"{say(5)} {i}?", say(8), id=str(i)) for i in range(16)]
tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in records], vocabulary=300)
encoded = encode_all(tokenizer, records)
if "sharded" in jobs:
    from types import SimpleNamespace
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from upright.language.objectives import objective_of, record_losses
    from upright.language.reader import read_answers
    from upright.language.references import checksum, frozen_copy
    from upright.language.training import NumberGuard

    plain, model = (tiny_llama(tokenizer, hidden=16, layers=2, heads=2, seed=0) for _ in range(2))
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh)
    same = checksum(plain) == checksum(model)
    sums = [torch.tensor([float(said.sum()) for said in read_answers(one, encoded[:10], pad=0)], dtype=torch.float64)
            for one in (plain, model)]
    batch = PairCollator(encoded[:10], encoded[10:], (), 0)([(k, k % 6, True) for k in range(4)])
    objective, found = objective_of("npo"), []
    for one in (plain, model):
        forget, retain = record_losses(objective, one, batch, sums={"forget": sums[0]}, speaking=None)
        (forget.mean() + retain.mean()).backward()
        grads = [getattr(p.grad, "full_tensor", lambda g=p.grad: g)() for p in one.parameters()]
        found.append(torch.cat([one.reshape(-1) for one in grads]))
    state = SimpleNamespace(global_step=0)
    NumberGuard().on_pre_optimizer_step(None, state, None, model=model)
    refused = []
    try:
        frozen_copy(model)
    except ValueError as error:
        refused.append(str(error))
    np.savez(f"{out}/sharded-{torch.distributed.get_rank()}.npz", same=same, refused=refused,
             sums=np.stack(sums), grads=torch.stack(found).numpy())
    torch.distributed.barrier()
    os._exit(0)  # the results are written; threads of gloo may abort a process that takes itself apart
for name, job in jobs.items():
    arguments, options, resume = job["args"], job["options"], job.get("resume", False)
    model = tiny_llama(tokenizer, hidden=16, layers=2, heads=2, seed=0)
    eisam = "mode" in options
    scoring = options.pop("scoring", None)
    args = (EISAMArguments if eisam else UnlearnArguments)(
        output_dir=f"{out}/{job.get('folder', name)}", use_cpu=True, report_to=[], disable_tqdm=True, optim="sgd",
        max_grad_norm=1.0, seed=3, lr_scheduler_type="constant", learning_rate=0.05, logging_steps=1,
        **{"save_strategy": "no", **arguments, **options},
    )
    if eisam:
        one = EISAMTrainer(model, encoded[:10], [k % 4 for k in range(10)], args=args, processing_class=tokenizer)
    else:
        one = UnlearnTrainer(model, encoded[:10], encoded[10:], args=args, processing_class=tokenizer,
                             scoring=scoring)
    one.train(resume_from_checkpoint=resume)
    weights = torch.cat([p.detach().reshape(-1).double() for p in one.model.parameters()])
    second = "penalty" if eisam else "forget_loss"
    lines = [[line["loss"], line[second]] for line in one.state.log_history if "loss" in line]
    np.savez(f"{out}/{name}-{args.process_index}.npz", weights=weights.numpy(), lines=np.array(lines),
             drawn=0 if eisam else one.schedule.weights, step=one.state.global_step)
if torch.distributed.is_initialized():
    torch.distributed.barrier()
os._exit(0)
"""


def launch(folder, jobs, ranks):
    """Run jobs in processes of their own and return what each rank found, by job."""
    (folder / "worker.py").write_text(WORKER)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if ranks > 1:
        common |= {
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "1",
        }
    with contextlib.ExitStack() as stack:
        workers = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            log = stack.enter_context((folder / f"log-{ranks}-{rank}").open("w"))
            command = [sys.executable, str(folder / "worker.py"), str(folder), json.dumps(jobs)]
            workers.append(subprocess.Popen(command, env={**common, **own}, stdout=log, stderr=subprocess.STDOUT))
            stack.callback(workers[-1].wait)
            stack.callback(workers[-1].kill)  # a rank whose partner failed would wait for it
        codes = [worker.wait(timeout=800) for worker in workers]
    texts = [(folder / f"log-{ranks}-{rank}").read_text()[-3000:] for rank in range(ranks)]
    assert codes == [0] * ranks, "\n".join(texts)
    return {name: [_loaded(folder / f"{name}-{rank}.npz") for rank in range(ranks)] for name in jobs}


def _loaded(path):
    with np.load(path) as file:
        return dict(file)


MRD = {"sampling": "mrd", "refresh": 1, "scoring": {"probes": 2, "check_scaling": False}}
KINDS = {
    "npo": {"loss": "npo", **MRD}, "grad_diff": {"loss": "grad_diff"}, "kl": {"loss": "grad_diff_kl"},
    "undial": {"loss": "undial", "sampling": "uniform"}, "simnpo": {"loss": "simnpo"},
    "pdu": {"loss": "pdu", "loss_options": {"epsilon": 5.0, "warmup": 0}},
    "rmu": {"loss": "rmu", "loss_options": {"layer": 0}},
    "lagged": {"mode": "lagged", "rho": 0.3}, "subset": {"mode": "subset", "rho": 0.3},
}  # fmt: skip


def jobs(size, steps):
    """Four steps in two epochs of ten records, eight at once: the second step of an epoch is short."""
    args = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 4}
    return {name: {"args": args, "options": options} for name, options in KINDS.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds."""
    return {name: found[0] for name, found in launch(tmp_path_factory.mktemp("one"), jobs(8, 1), 1).items()}


def test_two_processes_give_the_weights_of_one(tmp_path, alone):
    # spec 4.1 (#144, #36, #120): catches a mean over ranks of means, records that a rank repeats to fill its batch,
    # ranks with another order or other scores, a loss that is logged for one rank. Then a run that is cut in the middle
    # of an epoch goes on with two processes and with one.
    work = jobs(2, 2)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3}
    work["cut"] = {"args": {**cut, "save_strategy": "steps", "save_steps": 1}, "options": KINDS["npo"]}
    work["resumed"] = {"args": {**cut, "max_steps": 4}, "options": KINDS["npo"], "folder": "cut", "resume": True}
    work["cut lagged"] = {**work["cut"], "options": KINDS["lagged"]}
    work["resumed lagged"] = {**work["resumed"], "options": KINDS["lagged"], "folder": "cut lagged"}
    both = launch(tmp_path, work, 2)
    for name, (first, second) in both.items():
        np.testing.assert_array_equal(first["weights"], second["weights"])
        np.testing.assert_array_equal(first["drawn"], second["drawn"])
        if name in alone:
            assert np.abs(first["weights"] - alone[name]["weights"]).max() < 1e-6, name
            np.testing.assert_allclose(first["lines"], alone[name]["lines"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(both["resumed"][0]["weights"], both["npo"][0]["weights"])
    np.testing.assert_array_equal(both["resumed lagged"][0]["weights"], both["lagged"][0]["weights"])
    assert np.abs(both["cut"][0]["weights"] - both["npo"][0]["weights"]).max() > 1e-4  # the last step moves the weights
    args = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 4}
    work = {
        "one": {"args": args, "options": KINDS["npo"], "folder": "cut", "resume": str(tmp_path / "cut/checkpoint-3")}
    }
    assert np.abs(launch(tmp_path, work, 1)["one"][0]["weights"] - alone["npo"]["weights"]).max() < 1e-6


def test_sharded_weights_read_as_whole_ones(tmp_path):
    # FSDP2 shards (DTensor): catches a checksum, sums or gradients of one shard, and a copy of a shard that passes for
    # a frozen model. By fully_shard itself: accelerate 1.15 turns FSDP on for accelerators alone, never on a CPU.
    for one in launch(tmp_path, {"sharded": {}}, 2)["sharded"]:
        assert one["same"]
        np.testing.assert_allclose(one["sums"][1], one["sums"][0], rtol=1e-6)
        np.testing.assert_allclose(one["grads"][1], one["grads"][0], rtol=1e-4, atol=1e-6)
        assert "a sharded or quantised model" in one["refused"][0]
