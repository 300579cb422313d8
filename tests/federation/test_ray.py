"""Documented apps under Flower's own simulation on Ray: nodes register late, and a client's worker dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("flwr", reason="the package flwr is not installed (extra `federated`)")
pytest.importorskip("ray", reason="the package ray is not installed (extra `ray`)")

APP = """
import json, os, sys, warnings
import numpy as np
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from upright.classification import training
from upright.classification.silos import silos_of
from upright.federation.flower import client_app, strategy
from upright.federation.rounds import drive
from upright.maths.parity.program import Constraint

DIES, K = int(sys.argv[1]), 3
rng = np.random.default_rng(0)
a, who, x = rng.integers(0, 2, 600), rng.integers(0, K, 600), rng.normal(size=(600, 4))
y = (x[:, 0] + 1.5 * a + rng.logistic(size=600) > 0.7).astype(np.int64)
data = silos_of(x, y, [f"site {i}" for i in who], [a])
names = sorted(data)
settings = training.settings_of(data, rounds=3, batch=64, local_steps=5)


class FedFACT(training.FedFACTTraining):
    def client(self, message, private, own):
        if own.name == "site 1" and DIES and int(message["round"][0]) >= 2:
            os._exit(1)  # as a worker that runs out of memory
        return super().client(message, private, own)


algorithm = FedFACT([Constraint(global_tol=0.01, local_tol=0.05)], settings)
server, log, found = ServerApp(), [], {}


@server.main()
def main(grid, context):
    own = strategy(algorithm, min_nodes=K, backoff_s=2.0, on_round=lambda state: log.append(state["log"][-1]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        own.start(grid, own.initial_arrays(), num_rounds=settings.rounds + 1, timeout=120)
    found.update(state=own.state, said=[str(one.message) for one in said if "old reply" in str(one.message)])


client = client_app(algorithm, lambda context: data[names[int(context.node_config["partition-id"])]])

if __name__ == "__main__":
    # Flower puts a dead worker back among its workers, so Ray has to start it again
    options = {"client_resources": {"num_cpus": 1, "max_restarts": -1}, "init_args": {"num_cpus": 2}}
    run_simulation(server, client, num_supernodes=K, backend_config=options)
    warnings.simplefilter("ignore")
    honest = training.FedFACTTraining(algorithm.constraints, settings)
    want, _ = drive(honest, data, present=lambda r, name: name != "site 1" or not DIES or r < 2)
    apart = max(float(np.abs(want[key] - found["state"][key]).max()) for key in ("theta.weight", "prices"))
    print(json.dumps({"log": log, "apart": apart, "said": found["said"]}))
"""


FEDREC = """
import json, os, sys, warnings
import numpy as np
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from upright.federation.recommender import FedRec
from upright.federation.rounds import drive
from upright.recommendation.federated import FedRecGEL

DIES, K = int(sys.argv[1]), 3
model = FedRec(rounds=3, fraction=1.0, dim=8, dtype="float64").start(range(40))
rng = np.random.default_rng(0)
data = {f"u{i}": model.device(f"u{i}", rng.choice(40, 5 + i, replace=False)) for i in range(K)}


class Dying(FedRecGEL):
    def client(self, message, private, own):
        if own.name == "u1" and DIES and int(message["round"][0]) >= 2:
            os._exit(1)  # as a worker that runs out of memory
        return super().client(message, private, own)


model.algorithm = Dying(model.algorithm.config)
log = []
strategy, client = model.app(lambda context: data[f"u{context.node_config['partition-id']}"], min_nodes=K,
                             backoff_s=2.0, on_round=lambda state: log.append(state["log"][-1]))
server = ServerApp()


@server.main()
def main(grid, context):
    strategy.start(grid, strategy.initial_arrays(), num_rounds=8, timeout=120)


if __name__ == "__main__":
    options = {"client_resources": {"num_cpus": 1, "max_restarts": -1}, "init_args": {"num_cpus": 2}}
    run_simulation(server, client, num_supernodes=K, backend_config=options)
    honest = FedRecGEL(model.algorithm.config)
    want, _ = drive(honest, data, present=lambda r, name: name != "u1" or not DIES or r < 2)
    apart = float(np.abs(want["shared.item"] - strategy.state["shared.item"]).max())
    print(json.dumps({"log": log, "apart": apart}))
"""


def finish(tmp_path, text, dies):
    """Return what a script prints in its last line."""
    script = tmp_path / "app.py"
    script.write_text(text, encoding="utf-8")
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "FLWR_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, str(script), str(int(dies))], check=False, capture_output=True, text=True,
                          timeout=600, env={**os.environ, **quiet}, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
def test_the_recommender_runs_on_ray(tmp_path, dies):
    # catches sparse replies or private memory that the simulation loses, and a mean over a client that is gone
    found = finish(tmp_path, FEDREC, dies)
    settled = [e for e in found["log"] if e["settled"]]  # until Ray has a new worker, others may fail with it
    assert [(e["round"], e["used"], e["asked"], list(e["quarantined_names"])) for e in settled] == [
        (r, 2, 3, ["u1"]) if dies and r >= 2 else (r, 3, 3, []) for r in (1, 2, 3)
    ]
    assert found["apart"] <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
def test_the_app_of_the_page_runs_on_ray(tmp_path, dies):
    # catches an app that is over before its nodes have registered, and a federation that ends with one of its workers
    found = finish(tmp_path, APP, dies)
    assert [(e["round"], e["used"], e["asked"]) for e in found["log"]] == [
        (r, 3 - (dies and r >= 2), 3) for r in range(4)
    ]
    assert [list(e["quarantined_names"]) for e in found["log"]] == [
        ["site 1"] if dies and r >= 2 else [] for r in range(4)
    ]
    assert found["apart"] <= 1e-12
    assert [text.rpartition(": ")[2] for text in found["said"]] == (["site 1"] if dies else [])
