"""Flower's own loop against `drive`: the same states, and every failure handled alike."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import in_process_grid as grid

pytest.importorskip("flwr", reason="the package flwr is not installed (extra `federated`)")

import flwr.app as fl
from flwr.clientapp import ClientApp

import shared_table as toy
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


def on_flower(algorithm, data, turns, *, app=None, present=None, backoff_s=0.0, **settings):
    """Run through Flower's own start; node 100 + i is client i."""
    names = sorted(data)
    with grid.identity():
        app = app or flower.client_app(algorithm, lambda context: data[names[int(context.node_config["partition-id"])]])
        nodes = grid.InProcessGrid(app, {100 + i: {"partition-id": i} for i in range(len(names))}, present=present)
        own = flower.strategy(algorithm, backoff_s=backoff_s, **settings)
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
    log = []
    with pytest.warns(RuntimeWarning, match="old reply of clients .*: site 7$"):
        want, memories = drive(algorithm, data, present=here, on_round=lambda s, p: logs.append(s["log"][-1]))
    with pytest.warns(RuntimeWarning, match="old reply of clients .*: site 7$"):
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
    app = _but(algorithm, data, 3, change)
    with pytest.warns(RuntimeWarning, match="old reply of clients .*: site 3$"):
        on_flower(algorithm, data, 4, app=app, on_round=lambda s: log.append(s["log"][-1]))
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


# -- who is asked, who is waited for ---------------------------------------------------------------------------------


def on_nodes(algorithm, data, turns, *, nodes=None, app=None, present=None, cls=grid.InProcessGrid, **settings):
    """Run over nodes that hold devices, `nodes` says which (node to name); the strategy, its log and the grid."""
    nodes = nodes or {100 + i: name for i, name in enumerate(sorted(data, reverse=True))}
    log = []
    with grid.identity():
        app = app or flower.client_app(algorithm, lambda context: data[context.node_config["who"]])
        there = cls(app, {node: {"who": name} for node, name in nodes.items()}, present=present)
        own = flower.strategy(algorithm, on_round=lambda s: log.append(s["log"][-1]), **{"backoff_s": 0.0, **settings})
        own.start(there, own.initial_arrays(), num_rounds=turns)
    return own, log, there


def test_a_sample_is_the_same_on_flower_and_in_one_process():
    # catches nodes drawn by their number, a fold in the order of arrival, and shapes that change on the way
    data = toy.devices(24)

    class Bad(toy.Table):
        def client(self, message, private, own):
            reply, private = super().client(message, private, own)
            return (reply | {"values": reply["values"] * np.nan} if own.name == "u005" else reply), private

    drawn = [toy.Table(3, 0.6).sample({"round": r}, sorted(data)) for r in range(3)]
    away = {(1, drawn[1][0]), (2, drawn[2][-1])}

    def here(turn, name):
        return (turn, name) not in away

    logs = []
    want, memories = drive(Bad(3, 0.6), data, present=here, on_round=lambda s, p: logs.append(s["log"][-1]))
    assert sum(e["absent"] for e in logs) == 2
    assert any(e["quarantined"] for e in logs)
    got, log, there = on_nodes(
        Bad(3, 0.6), data, 5, present=lambda turn, node: here(turn - 1, sorted(data, reverse=True)[node - 100])
    )
    np.testing.assert_array_equal(got.state["table"], want["table"])
    assert log == logs
    names = {node: context.node_config["who"] for node, context in there.contexts.items()}
    for node, context in there.contexts.items():
        held = flower.from_record(context.state["private"]) if "private" in context.state else {}
        assert set(held) == set(memories[names[node]])
        for key, value in held.items():
            np.testing.assert_array_equal(value, memories[names[node]][key], strict=True)
    asked = [{names[node] for turn, node, *_ in there.sent if turn == r + 1} for r in range(3)]
    assert asked == [{n for n in drawn[r] if here(r, n)} for r in range(3)]
    assert sorted(there.queries) == [(1, node) for node in sorted(names)]  # a roll call, once


def test_arrays_keep_their_shapes_in_records():
    # catches a number of shape () that arrives as an array of one
    sent = {"one": np.array(2.5), "none": np.zeros((0, 3)), "turned": np.arange(6).reshape(2, 3).T, "many": np.ones(2)}
    back = flower.from_record(flower.to_record(sent))
    for name, value in sent.items():
        np.testing.assert_array_equal(back[name], value, strict=True)


def test_a_round_that_draws_nobody_is_over_on_flower_too():
    # catches turns that are spent on nobody
    own, log, there = on_nodes(toy.Table(2, 0.0), toy.devices(4), 4)
    assert own.state["round"] == 2
    assert [e["asked"] for e in log] == [0, 0]
    assert there.sent == []


class Late(grid.InProcessGrid):
    """Nodes that register one by one: one more at each look; `gone` says who is no longer there in a turn."""

    looks, slow = 0, True

    def get_node_ids(self):
        self.looks += 1
        return list(self.contexts)[: self.looks - 1] if self.slow else list(self.contexts)


def test_the_first_turn_waits_for_nodes(monkeypatch):
    # catches a federation that ends with "0 of 0 clients" because nodes register after the server has started
    monkeypatch.setattr(flower.time, "sleep", lambda seconds: None)
    data = world(9)
    names = sorted(data)
    algorithm = algorithm_for(data)
    log = []
    with grid.identity():
        app = flower.client_app(algorithm, lambda context: data[names[int(context.node_config["partition-id"])]])
        nodes = Late(app, {100 + i: {"partition-id": i} for i in range(K)})
        own = flower.strategy(algorithm, min_nodes=K, on_round=lambda s: log.append(s["log"][-1]))
        own.start(nodes, own.initial_arrays(), num_rounds=4)
    same(drive(algorithm, data)[0], own.state)
    assert [e["asked"] for e in log] == [K] * 4


def test_a_turn_without_nodes_is_no_attempt():
    # catches attempts that are used up before anybody is there
    data = toy.devices(4)
    own, log, _ = on_nodes(toy.Table(2, 1.0), data, 12, cls=Late, wait_s=0.0, repeats=0)
    assert [e["asked"] for e in log] == [1, 2]  # the first turn found nobody
    assert own.state["round"] == 2


def test_a_node_that_comes_later_is_asked_for_its_name_and_takes_part():
    # catches a roll call that is taken once
    own, log, there = on_nodes(toy.Table(4, 1.0), toy.devices(4), 6, cls=Late, wait_s=0.0)
    assert [e["asked"] for e in log] == [1, 2, 3, 4]
    assert there.queries == [(2, 100), (3, 101), (4, 102), (5, 103)]
    assert own.names == {100: "u003", 101: "u002", 102: "u001", 103: "u000"}


def test_of_two_nodes_with_one_name_the_first_is_asked():
    # catches a client that is counted twice, or drawn under the name of another
    data = toy.devices(3)
    nodes = {7: "u001", 3: "u001", 9: "u000", 4: "u002"}
    own, log, there = on_nodes(toy.Table(2, 1.0), data, 2, nodes=nodes)
    assert [e["quarantined_names"] for e in log] == 2 * [{"node 7": "a second node that calls itself 'u001'"}]
    assert {node for _, node, *_ in there.sent} == {3, 4, 9}
    np.testing.assert_array_equal(own.state["table"], drive(toy.Table(2, 1.0), data)[0]["table"])


def test_a_client_that_comes_back_as_another_node_has_its_name_again():
    # catches a restarted node that is taken for a thief
    data = toy.devices(3)

    class Restarted(grid.InProcessGrid):
        def get_node_ids(self):
            # node 1 is replaced by node 5 once turn 2 was sent
            return [n for n in self.contexts if n != (1 if any(t == 2 for t, *_ in self.sent) else 5)]

    nodes = {1: "u000", 2: "u001", 3: "u002", 5: "u000"}
    own, log, there = on_nodes(toy.Table(4, 1.0), data, 4, nodes=nodes, cls=Restarted)
    assert [(e["used"], e["quarantined"]) for e in log] == [(3, 0)] * 4
    assert [node for turn, node, *_ in there.sent if turn > 2] == [5, 2, 3] * 2
    assert own.names == {2: "u001", 3: "u002", 5: "u000"}


def test_who_cannot_say_its_name_is_named_by_its_node_and_not_drawn():
    # catches a node that holds up the others, and one that is passed over without a word
    data = toy.devices(3)
    algorithm = toy.Table(2, 1.0)

    def load(context):
        if context.node_config["who"] == "u001":
            raise FileNotFoundError("no data here")
        return data[context.node_config["who"]]

    own, log, _ = on_nodes(algorithm, data, 2, app=flower.client_app(algorithm, load))
    assert [list(e["quarantined_names"]) for e in log] == [["node 101"]] * 2
    assert "no data here" in log[0]["quarantined_names"]["node 101"]
    want, _ = drive(algorithm, data, present=lambda turn, name: name != "u001")
    np.testing.assert_array_equal(own.state["table"], want["table"])


def failing(monkeypatch, fails, rounds):
    """Return the waits, the rounds in which u001 was called, and an algorithm whose client fails then."""
    slept, calls = [], []
    monkeypatch.setattr(flower.time, "sleep", slept.append)

    class Failing(toy.Table):
        def client(self, message, private, own):
            if own.name == "u001":
                calls.append(int(message["round"]))
                if fails(calls):
                    raise MemoryError("killed")
            return super().client(message, private, own)

    return slept, calls, Failing(rounds, 1.0)


@pytest.mark.parametrize(("fails", "waits"), [(1, [0.5]), (3, [0.5, 1.0, 2.0]), (99, [0.5, 1.0, 2.0])])
def test_a_client_that_failed_is_asked_again_after_waits_that_double(monkeypatch, fails, waits):
    # catches a client that is lost for a round because of one failure, and one that is asked for ever
    slept, calls, algorithm = failing(monkeypatch, lambda calls: len(calls) <= fails, 2)
    data = toy.devices(4)
    own, log, _ = on_nodes(algorithm, data, 2, backoff_s=0.5)
    assert slept == waits
    if fails == 99:  # through with it: asked once a turn
        assert calls == [0] * 4 + [1]
        assert [e["quarantined_names"]["u001"] for e in log] == ["failed: <class 'MemoryError'>:<'killed'>"] * 2
        want, _ = drive(toy.Table(2, 1.0), data, present=lambda turn, name: name != "u001")
    else:
        assert [e["used"] for e in log] == [4, 4]
        want, _ = drive(toy.Table(2, 1.0), data)
    np.testing.assert_array_equal(own.state["table"], want["table"])


def test_a_client_that_failed_and_answers_later_is_asked_again_like_the_others(monkeypatch):
    # catches one that is never patiently asked again
    slept, _, algorithm = failing(monkeypatch, lambda calls: calls[-1] in (0, 2) and calls.count(2) < 2, 3)
    _, log, _ = on_nodes(algorithm, toy.devices(4), 3, backoff_s=1.0, repeats=2)
    assert [e["quarantined"] for e in log] == [1, 0, 0]
    assert slept == [1.0, 2.0, 1.0]


def test_a_reply_finds_its_node_without_a_look_at_all_others():
    # catches a search through all nodes for each reply: 0.6 ms at 3,000 of them
    class Counted(dict):
        def items(self):
            raise AssertionError("all nodes were looked at")

        __iter__ = values = items

    data = toy.devices(3)
    algorithm = toy.Table(1, 1.0)
    with grid.identity():
        nodes = grid.InProcessGrid(
            flower.client_app(algorithm, lambda context: data[context.node_config["who"]]),
            {i: {"who": name} for i, name in enumerate(data)},
        )
        own = flower.strategy(algorithm)
        messages = own.configure_train(1, own.initial_arrays(), fl.ConfigRecord(), nodes)
        own.names = Counted(own.names)
        own.aggregate_train(1, nodes.send_and_receive(messages))
    assert own.state["log"][0]["used"] == 3


@pytest.mark.parametrize("settings", [{"least": 0.0}, {"repeats": -1}, {"min_nodes": 0}, {"wait_s": -1.0}])
def test_settings_of_the_server_outside_their_range_are_refused(settings):
    with pytest.raises(InputError, match="waits of"):
        flower.strategy(toy.Table(), **settings)


# -- memory that outlives its node -------------------------------------------------------------------------------


def test_a_node_that_is_restarted_goes_on_from_its_file(tmp_path):
    # catches private memory that lives in the process of the node: the device would begin anew
    data = toy.devices(5)
    algorithm = toy.Table(4, 1.0)
    want, memories = drive(algorithm, data)
    app = flower.client_app(algorithm, lambda context: data[context.node_config["who"]], keep=tmp_path / "kept")
    first, _, before = on_nodes(algorithm, data, 2, app=app)
    assert all("private" not in context.state for context in before.contexts.values())
    second, *_ = on_nodes(algorithm, data, 2, app=app, state=first.state)  # other contexts: all nodes are new
    np.testing.assert_array_equal(second.state["table"], want["table"])
    kept = {path.name: path for path in (tmp_path / "kept").iterdir()}
    assert sorted(kept) == [f"private-{name}.safetensors" for name in sorted(data)]
    for name, own in memories.items():
        assert kept[f"private-{name}.safetensors"].stat().st_mode & 0o777 == 0o600
        held = safetensors.numpy.load_file(kept[f"private-{name}.safetensors"])
        assert set(held) == set(own)
        for key, value in own.items():
            np.testing.assert_array_equal(held[key], value, strict=True)


def test_a_write_that_fails_leaves_the_file_that_was(tmp_path, monkeypatch):
    # catches half a file after a power cut, and parts that pile up
    data = toy.devices(1)
    algorithm = toy.Table(4, 1.0)
    app = flower.client_app(algorithm, lambda context: data[context.node_config["who"]], keep=tmp_path)
    first, *_ = on_nodes(algorithm, data, 1, app=app)
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(flower.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
        second, log, _ = on_nodes(algorithm, data, 1, app=app, state=first.state)
    assert "disk full" in log[0]["quarantined_names"]["u000"]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    third, *_ = on_nodes(algorithm, data, 1, app=app, state=second.state)
    assert third.state["round"] == 2


def test_a_damaged_file_is_named_and_stays_as_it_is(tmp_path):
    # catches a device that begins anew without a word, and a pickle that is opened
    data = toy.devices(3)
    algorithm = toy.Table(1, 1.0)
    app = flower.client_app(algorithm, lambda context: data[context.node_config["who"]], keep=tmp_path)
    (tmp_path / "private-u001.safetensors").write_bytes(pickle.dumps({"user": 1}))
    _, log, _ = on_nodes(algorithm, data, 1, app=app)
    assert "no private memory can be read" in log[0]["quarantined_names"]["u001"]
    assert log[0]["used"] == 2
    assert pickle.loads((tmp_path / "private-u001.safetensors").read_bytes()) == {"user": 1}


@pytest.mark.parametrize("name", ["../up", "a/b", "..", "two\nlines", "ü"])
def test_no_name_of_a_client_leads_out_of_the_folder(name, tmp_path):
    # catches a name that is a path
    data = {name: toy.Device(name, np.array([1, 2]))}
    algorithm = toy.Table(1, 1.0)
    folder = tmp_path / "deep" / "kept"
    app = flower.client_app(algorithm, lambda context: data[context.node_config["who"]], keep=folder)
    own, *_ = on_nodes(algorithm, data, 1, app=app)
    assert own.state["round"] == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == list(folder.iterdir())
    assert len(list(folder.iterdir())) == 1


def test_without_flower_the_error_has_three_parts():
    # catches a bare ModuleNotFoundError
    code = "import sys; sys.modules['flwr'] = None\nimport upright.federation.flower"
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert found.returncode == 1
    assert "accepted: flwr" in found.stderr
    assert "pip install 'upright[federated]'" in found.stderr
