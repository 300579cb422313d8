"""FedRecGEL in its three surroundings: the driver, Flower in one process, one client at a time."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from upright.data.interactions import synthetic
from upright.federation import rounds
from upright.recommendation.devices import devices_of
from upright.recommendation.federated import FedRecGEL
from upright.recommendation.settings import FedRecConfig

BAD, GONE = "u05", "u11"


class Sick(FedRecGEL):
    """One client answers with a number that is none in the second round."""

    def clients(self, message, privates, datas):
        found = super().clients(message, privates, datas)
        if BAD in found and int(message["round"][0]) == 2:
            reply, private = found[BAD]
            found[BAD] = ({**reply, "values": reply["values"] * np.nan}, private)
        return found


def world(backbone, cls=Sick):
    split = synthetic(n_users=24, n_items=60)
    config = FedRecConfig(n_items=60, backbone=backbone, dim=8, dtype="float64", fraction=0.75, rounds=3, seed=1)
    return cls(config), devices_of(split.train.user, split.train.item, split.n_users)


def here(turn, name):
    return (turn, name) != (2, GONE)


def same(state, other, tol):
    for key, value in state.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(value, other[key], rtol=0, atol=tol, err_msg=key)
    assert state["history"][-1]["clients"] == other["history"][-1]["clients"]


@pytest.mark.parametrize("backbone", ["dot", "neumf"])
def test_driver_flower_and_one_client_at_a_time_give_the_same_state(backbone):
    # sampling, one client absent and one quarantined in the second round
    grid = pytest.importorskip("in_process_grid")
    from upright.federation.flower import client_app, strategy

    algorithm, data = world(backbone)
    assert {BAD, GONE} < set(algorithm.sample({"round": 2}, list(data)))
    logs = []
    state, privates = rounds.drive(algorithm, data, present=here, on_round=lambda s, p: logs.append(s["log"][-1]))
    assert [(len(data) * 3 // 4 - e["used"], e["absent_names"], [*e["quarantined_names"]]) for e in logs] == [
        (0, [], []), (2, [GONE], [BAD]), (0, [], [])]  # fmt: skip
    alone, memories = rounds.drive(algorithm, data, present=here, chunk=1)
    same(state, alone, 1e-14)
    names = sorted(data)
    for name in names:
        for key, value in privates[name].items():
            np.testing.assert_allclose(value, memories[name][key], rtol=0, atol=1e-14)
    app = client_app(algorithm, lambda context: data[names[int(context.node_config["partition-id"])]])
    with grid.identity():
        nodes = {node: {"partition-id": node - 1} for node in range(1, len(names) + 1)}
        there = grid.InProcessGrid(app, nodes, present=lambda turn, node: here(turn, names[node - 1]))
        own = strategy(algorithm)
        own.start(there, own.initial_arrays(), num_rounds=3)
    same(state, own.state, 1e-14)


def test_a_run_that_was_stopped_between_rounds_ends_where_the_other_ends():
    algorithm, data = world("neumf", FedRecGEL)
    saved = io.BytesIO()

    def stop(state, privates):
        if state["round"] == 3:
            torch.save(rounds.to_tensors({"state": state, "privates": privates}), saved)
            saved.seek(0)

    state, privates = rounds.drive(algorithm, data, on_round=stop)
    back = rounds.from_tensors(torch.load(saved, weights_only=True))
    assert isinstance(back["privates"], rounds.Rows)
    again, memories = rounds.drive(algorithm, data, resume=(back["state"], back["privates"]))
    same(state, again, 0.0)
    assert {k: v.tolist() for k, v in privates.arrays.items()} == {k: v.tolist() for k, v in memories.arrays.items()}


def test_a_reply_of_another_model_is_quarantined_by_name():
    algorithm, data = world("neumf", FedRecGEL)
    wide = FedRecGEL(algorithm.config.replace(dim=16)).start()
    single = FedRecGEL(algorithm.config.replace(dtype="float32")).start()
    for other in (wide, single):
        reply, _ = FedRecGEL(algorithm.config).client(algorithm.message(algorithm.start()), {}, data["u01"])
        strange = reply | {
            "values": np.zeros((len(reply["rows"]), other["shared.item"].shape[1]), other["m.item"].dtype)
        }
        state = rounds.settle(algorithm, algorithm.start(), {"u01": strange, "u02": reply}, ["u01", "u02"])
        assert [*state["log"][-1]["quarantined_names"]] == ["u01"]
        assert state["history"][-1]["clients"] == 1
