"""A run goes to a federation of its own: what leaves it, and a SuperLink with two SuperNodes that go on from it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from upright.contract import InputError
from upright.experiment.export import export_run
from upright.experiment.runner import Ask, execute
from upright.federation.recommender import FedRec
from upright.federation.rounds import drive, from_tensors

HISTORIES = {"anna": ["i1", "i2", "i3", "i10", "i40"], "ben": ["i4", "i2", "i30"]}
FILES = {"README.md", "client_app.py", "pyproject.toml", "server_app.py", "settings.json", "shared.safetensors"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = {"rounds": 4, "check_every": 2, "fraction": 1.0, "dim": 8, "precision": "float64"}
    ask = Ask("fedrecgel", data="synthetic", settings=settings, arms=["none", "fedrecgel"])
    return execute(ask, folder=tmp_path_factory.mktemp("runs") / "s0")


def kept(run):
    return torch.load(run / "checkpoints" / "fedrecgel.best.pt", weights_only=True)["state"]["parts"]["kept"]


def test_what_leaves_a_run_has_the_shared_block_and_nothing_of_a_user(run, tmp_path):
    # catches private vectors, moments or histories of simulated users in any file of the app
    folder = export_run(run, "flower", tmp_path / "app")
    assert {file.name for file in folder.iterdir()} == FILES
    model = FedRec.load(folder)
    state, rows = from_tensors(kept(run)["state"]), from_tensors(kept(run)["privates"])
    for name, value in model.shared().items():
        np.testing.assert_array_equal(value, state[name])
    assert model.devices == model.privates == {}
    blob = b"".join(file.read_bytes() for file in folder.iterdir())
    assert state["shared.item"][0].tobytes() in blob  # a vector that is there would be found
    held = [name for name in rows if rows[name]]
    assert len(held) == 120
    for key in ("user", "m", "v"):
        assert not [name for name in held if rows[name][key].tobytes() in blob]
    assert len((folder / "README.md").read_text(encoding="utf-8").splitlines()) == 6


def test_an_export_needs_a_kind_a_finished_run_and_its_data(run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="flower") as said:
        export_run(run, "flowers", tmp_path / "app")
    assert said.value.accepted == "card, parquet, flower"
    monkeypatch.setattr("upright.data.interactions.fingerprint", lambda train, valid: "other")
    with pytest.raises(InputError, match="fingerprint"):
        export_run(run, "flower", tmp_path / "app")
    other = tmp_path / "s0"
    other.mkdir()
    for file in ("config.json", "run.json", "summary.json", ".lock"):
        (other / file).write_bytes((run / file).read_bytes())
    with pytest.raises(InputError, match="checkpoint"):
        export_run(other, "flower", tmp_path / "app")
    assert not (tmp_path / "app").exists()


def free_ports(n):
    held = [socket.socket() for _ in range(n)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def wait_for(port, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail(f"nothing listens at port {port} after {seconds} seconds")


@pytest.mark.slow
def test_two_supernodes_go_on_where_the_driver_goes_on(run, tmp_path):
    # the app of the export through SuperLink and SuperNodes, each in a process of its own, sent by `flwr run`
    pytest.importorskip("flwr", reason="the package flwr is not installed (extra `federated`)")
    folder = export_run(run, "flower", tmp_path / "app")
    link, *ports = free_ports(3)
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n')
    tools = Path(sys.executable).parent
    path = os.pathsep.join([str(tools), os.environ.get("PATH", "")])  # flower-superexec is looked for there
    env = os.environ | {"PATH": path, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
    env |= {"FEDREC_KEEP": str(tmp_path / "kept"), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    started = []

    def start(name, *words):
        with (tmp_path / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen([str(tools / words[0]), *words[1:]], stdout=log, stderr=log, env=env,
                                            cwd=tmp_path, start_new_session=True))  # fmt: skip

    try:
        start(
            "link", "flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", str(link)
        )
        wait_for(link)
        for i, (name, items) in enumerate(HISTORIES.items()):
            file = tmp_path / f"{name}.csv"
            file.write_text("\n".join(["item", *items]), encoding="utf-8")
            start(name, "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}", "--port", str(ports[i]),
                  "--node-config", f'partition-id={i} data="{file}"')  # fmt: skip
        config = f'shared="{folder / "shared.safetensors"}" out="{tmp_path / "trained"}" rounds=2'
        words = [str(tools / "flwr"), "run", str(folder), "here", "--stream", "--run-config", config]
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=400, env=env, cwd=tmp_path)
        logs = "\n".join(file.read_text(errors="replace")[-2000:] for file in tmp_path.glob("*.log"))
        assert (tmp_path / "trained" / "shared.safetensors").exists(), done.stdout[-3000:] + done.stderr[-2000:] + logs
    finally:
        for process in reversed(started):  # each with the processes that it started
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            process.wait(timeout=30)
    model = FedRec.load(folder, rounds=2)
    data = {name: model.device(name, items) for name, items in HISTORIES.items()}
    state, privates = drive(model.algorithm, data, resume=(model.state, {}))
    got = FedRec.load(tmp_path / "trained").shared()
    assert np.abs(state["shared.item"] - model.shared()["shared.item"]).max() > 1e-3
    for name in got:
        np.testing.assert_allclose(got[name], state[name], rtol=0, atol=1e-12)
    files = {file.name: file for file in (tmp_path / "kept").iterdir()}
    assert sorted(files) == [f"private-{name}.safetensors" for name in sorted(HISTORIES)]
    for name in HISTORIES:  # each device keeps its own vector
        own = load(files[f"private-{name}.safetensors"].read_bytes())
        np.testing.assert_allclose(own["user"], privates[name]["user"], rtol=0, atol=1e-12)
