"""Flower's own loop against `drive`: the same states, and every failure handled alike."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest

import in_process_grid as grid

pytest.importorskip("flwr", reason="the package flwr is not installed (extra `federated`)")

import flwr.app as fl
from flwr.clientapp import ClientApp

from upright.classification import training
from upright.classification.silos import silos_of
from upright.contract import InputError
from upright.federation import flower
from upright.federation.rounds import drive
from upright.maths.parity.program import Constraint

K = 8


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("flwr").setLevel(logging.WARNING)


def world(seed=0, n=1600):
    rng = np.random.default_rng(seed)
    a, who = rng.integers(0, 2, n), rng.integers(0, K, n)
    x = rng.normal(size=(n, 4))
    x[:, 0] += 1.5 * a
    y = (x[:, 0] + x[:, 2] - 0.7 + rng.logistic(size=n) > 0).astype(np.int64)
    return silos_of(x, y, [f"site {i}" for i in who], [a])


def algorithm_for(data, **settings):
    own = training.settings_of(data, **({"rounds": 3, "batch": 64, "local_steps": 5} | settings))
    return training.FedFACTTraining([Constraint(global_tol=0.01, local_tol=0.05)], own)


def on_flower(algorithm, data, turns, *, app=None, present=None, **settings):
    """Run through Flower's own start; node 100 + i is client i."""
    names = sorted(data)
    with grid.identity():
        app = app or flower.client_app(algorithm, lambda context: data[names[int(context.node_config["partition-id"])]])
        nodes = grid.InProcessGrid(app, {100 + i: {"partition-id": i} for i in range(len(names))}, present=present)
        own = flower.strategy(algorithm, **settings)
        result = own.start(nodes, own.initial_arrays(), num_rounds=turns)
    privates = {names[n - 100]: flower.from_record(c.state["private"]) for n, c in nodes.contexts.items()
                if "private" in c.state}  # fmt: skip
    return own.state, privates, result, nodes


def same(left, right):
    assert set(left) == set(right)
    for key, value in left.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == right[key].dtype
            np.testing.assert_allclose(right[key], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rounds", "hidden", "average"), [(3, 0, 1), (3, 4, 2), (30, 0, 1)])
def test_flowers_own_loop_ends_where_drive_ends(rounds, hidden, average):
    # catches memory that does not survive a message, arrays that change type or shape, another order of averaging
    data = world()
    algorithm = algorithm_for(data, rounds=rounds, hidden=hidden, average=average)
    want, memories = drive(algorithm, data)
    got, privates, result, nodes = on_flower(algorithm, data, rounds + 3)  # turns after the end send nothing
    same(want, got)
    assert got["log"] == want["log"]
    for name in data:
        same(memories[name], privates[name])
    same(algorithm.message(want), flower.from_record(result.arrays))
    assert max(turn for turn, *_ in nodes.sent) == rounds + 1
    last = result.train_metrics_clientapp[rounds + 1]
    assert last["used"] == K
    np.testing.assert_allclose(last["global_gap"], want["history"][-1]["global_gap"], atol=1e-12)


def test_federated_averaging_runs_too():
    # catches an adapter that knows one algorithm
    data = world(1)
    algorithm = training.FedAvg(training.settings_of(data, rounds=3))
    want, _ = drive(algorithm, data)
    got, _, _, _ = on_flower(algorithm, data, 3)
    same(want, got)


def test_dropout_is_handled_as_in_drive():
    # catches an average over everybody, and a client that is lost with its memory
    data = world(2)
    names = sorted(data)
    algorithm = algorithm_for(data, rounds=5)

    def here(turn, name):
        return (turn, name) not in {(2, names[0]), (3, names[0]), (3, names[5]), (5, names[7])}

    logs = []
    want, memories = drive(algorithm, data, present=here, on_round=lambda s, p: logs.append(s["log"][-1]))
    log = []
    got, privates, _, _ = on_flower(
        algorithm, data, 6, present=lambda turn, node: here(turn - 1, names[node - 100]),
        on_round=lambda s: log.append(s["log"][-1]),
    )  # fmt: skip
    same(want, got)
    assert log == logs
    assert log[3]["absent_names"] == [names[0], names[5]]
    for name in data:
        same(memories[name], privates[name])


def _but(algorithm, data, who, change):
    """An app of which one client's replies are changed before they leave."""
    names = sorted(data)
    whole = flower.client_app(algorithm, lambda context: data[names[int(context.node_config["partition-id"])]])
    app = ClientApp()

    @app.train()
    def train(message, context):
        reply = whole(message, context)
        return change(message, reply) if context.node_config["partition-id"] == who else reply

    return app


def _nan(message, reply):
    arrays = flower.from_record(reply.content["reply"])
    arrays = {
        name: np.full_like(value, np.nan) if name.startswith("delta") else value for name, value in arrays.items()
    }
    reply.content["reply"] = flower.to_record(arrays)
    return reply


def _error(message, reply):
    return fl.Message(fl.Error(0, "disk full"), reply_to=message)


def _empty(message, reply):
    return fl.Message(content=fl.RecordDict({}), reply_to=message)


def _garbage(message, reply):
    broken = fl.Array(dtype="float64", shape=(2,), stype="numpy.ndarray", data=b"no array")
    reply.content["reply"] = fl.ArrayRecord({"mass": broken})
    return reply


def _thief(message, reply):
    reply.content["client"] = fl.ConfigRecord({"name": "site 0"})
    return reply


@pytest.mark.parametrize(
    ("change", "who", "reason"),
    [
        (_nan, "site 3", "delta.bias with 2 numbers that are not finite"),
        (_error, "node 103", "failed: disk full"),
        (_empty, "node 103", "records [] in place of client and reply"),
        (_garbage, "site 3", "arrays that cannot be read"),
        (_thief, "node 103", "a second node that calls itself 'site 0'"),
    ],
)
def test_a_reply_that_cannot_be_used_is_quarantined_and_named(change, who, reason):
    # catches the NaN that stock FedAvg and FedMedian average, failures that look like absence, and a stolen name
    data = world(3)
    algorithm = algorithm_for(data)
    state, *_ = on_flower(algorithm, data, 4, app=_but(algorithm, data, 3, change))
    assert list(state["log"][-1]["quarantined_names"]) == [who]
    assert state["log"][-1]["quarantined_names"][who].startswith(reason)
    assert state["log"][-1]["used"] == K - 1
    assert state["log"][-1]["absent"] == 0
    assert all(np.isfinite(v).all() for v in state.values() if isinstance(v, np.ndarray))
    # the others go on as if it had not been there; the one of NaN had sent its masses, which were right
    want, _ = drive(algorithm, data, present=lambda turn, name: name != "site 3" or (turn == 0 and change is _nan))
    for key in ("theta.weight", "prices"):
        np.testing.assert_allclose(state[key], want[key], rtol=0, atol=1e-12)


def test_a_node_may_not_change_its_name():
    # catches a client that answers for another one in a later round
    data, turns = world(4), []

    def change(message, reply):
        turns.append(1)
        return _thief(message, reply) if len(turns) > 2 else reply

    algorithm, log = algorithm_for(data), []
    on_flower(algorithm, data, 4, app=_but(algorithm, data, 3, change), on_round=lambda s: log.append(s["log"][-1]))
    assert [e["quarantined_names"] for e in log] == [{}, {}] + 2 * [
        {"site 3": "a node that called itself 'site 0' now"}
    ]


def test_late_replies_are_refused_by_their_turn():
    # catches a reply of an old model that is averaged into a new one
    data, kept = world(5), []

    def change(message, reply):
        kept.append(reply)
        return kept[-2] if len(kept) > 1 else reply

    algorithm, log = algorithm_for(data), []
    on_flower(algorithm, data, 4, app=_but(algorithm, data, 3, change), on_round=lambda s: log.append(s["log"][-1]))
    assert [e["quarantined_names"] for e in log] == [{}] + [{"site 3": f"a late reply, to turn {t}"} for t in (1, 2, 3)]


def test_too_few_nodes_repeat_the_round_and_then_end_with_names():
    # catches a silent round without a majority
    data = world(6)
    algorithm, log = algorithm_for(data), []
    on_flower(algorithm, data, 5, present=lambda turn, node: turn != 2 or node < 102,
              on_round=lambda s: log.append(s["log"][-1]))  # fmt: skip
    assert [(e["round"], e["settled"]) for e in log] == [
        (0, True),
        (1, False),
        (1, True),
        (2, True),
        (3, True),
    ]
    with pytest.raises(InputError, match="round 1: 2 of 8 clients could be used after 2 attempts; absent: site 2"):
        on_flower(algorithm, data, 9, present=lambda turn, node: turn == 1 or node < 102, repeats=1)


def test_a_saved_state_goes_on_where_it_was():
    # catches a strategy that starts anew; nodes keep their memory
    data = world(7)
    names = sorted(data)
    algorithm = algorithm_for(data, rounds=4)
    want, _ = drive(algorithm, data)
    kept = []
    with grid.identity():
        app = flower.client_app(algorithm, lambda context: data[names[int(context.node_config["partition-id"])]])
        nodes = grid.InProcessGrid(app, {i: {"partition-id": i} for i in range(K)})
        first = flower.strategy(algorithm, on_round=kept.append)
        first.start(nodes, first.initial_arrays(), num_rounds=2)
        second = flower.strategy(algorithm, state=kept[-1])
        second.start(nodes, second.initial_arrays(), num_rounds=3)
    same(want, second.state)


def test_messages_have_the_sizes_of_the_papers_table():
    # spec 2.6: catches private models, prices of clients or data that travel
    data = world(8)
    algorithm = algorithm_for(data)
    *_, nodes = on_flower(algorithm, data, 4)
    model, dim = 4 * 2 + 2, 2 * 2
    sizes = {turn: {(down, up) for t, _, down, up in nodes.sent if t == turn} for turn in range(1, 5)}
    assert sizes[1] == {(model + dim + 1, dim + 1)}  # masses and rows, once
    for turn in (2, 3, 4):
        assert sizes[turn] == {(model + dim + 1 + K, model + dim + 8)}


def test_without_flower_the_error_has_three_parts():
    # catches a bare ModuleNotFoundError
    code = "import sys; sys.modules['flwr'] = None\nimport upright.federation.flower"
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert found.returncode == 1
    assert "accepted: flwr" in found.stderr
    assert "pip install 'upright[federated]'" in found.stderr
