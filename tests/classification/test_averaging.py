"""Federated averaging against plain training, and what trainings serve."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load, save

from upright.classification import training
from upright.classification.silos import Silo, silos_of
from upright.contract import InputError
from upright.federation.rounds import drive
from upright.maths.parity.program import Constraint

INF = float("inf")


def world(seed=0, n=600, k=4):
    rng = np.random.default_rng(seed)
    a, who = rng.integers(0, 2, n), rng.integers(0, k, n)
    x = rng.normal(size=(n, 4))
    x[:, 0] += 1.5 * a
    y = (x[:, 0] + x[:, 2] - 0.7 + rng.logistic(size=n) > 0).astype(np.int64)
    return silos_of(x, y, [f"c{i}" for i in who], [a])


def run(data, tolerance, **settings):
    algorithm = training.FedFACTTraining([Constraint(global_tol=tolerance)], training.settings_of(data, **settings))
    state, privates = drive(algorithm, data)
    return state, privates, training.trained(state, privates)


# -- federated averaging --------------------------------------------------------------------------------------------


def test_federated_averaging_of_one_client_with_all_rows_is_plain_training():
    # catches an average that is not the identity for one client: logistic regression reaches its optimum
    from sklearn.linear_model import LogisticRegression

    data = world(2, n=800, k=1)
    own = training.settings_of(data, rounds=60, local_steps=20, batch=800, optimiser="sgd", learning_rate=0.5)
    state, privates = drive(training.FedAvg(own), data)
    silo = data["c0"]
    model = LogisticRegression(C=1e6, tol=1e-8).fit(silo.x, silo.y)
    np.testing.assert_allclose(
        training.trained(state, privates).predict_proba(silo.x), model.predict_proba(silo.x), atol=1e-4
    )


def test_averages_are_weighted_by_rows():
    # catches the plain mean: a client of 900 rows and one of 100
    data = world(3, n=1000, k=1)
    x, y, q = data["c0"].x, data["c0"].y, data["c0"].members[0]
    two = {n: Silo(n, x[r], y[r], (q[r],)) for n, r in (("a", slice(0, 900)), ("b", slice(900, 1000)))}
    algorithm = training.FedAvg(training.settings_of(two, rounds=1))
    state = algorithm.start()
    replies = {n: algorithm.client(algorithm.message(state), {}, s)[0] for n, s in two.items()}
    got = algorithm.server(state, replies)["theta.weight"]
    np.testing.assert_allclose(got, 0.9 * replies["a"]["delta.weight"] + 0.1 * replies["b"]["delta.weight"], atol=1e-15)


def test_batches_belong_to_client_and_round():
    # catches one stream for all clients, and the same batches in every round
    data = world(25, n=400, k=1)
    x, y, q = data["c0"].x, data["c0"].y, data["c0"].members
    algorithm = training.FedAvg(training.settings_of(data, batch=16, local_steps=3))
    message = algorithm.message(algorithm.start())
    replies = [algorithm.client(m, {}, Silo(name, x, y, q))[0]["delta.weight"]
               for name, m in (("a", message), ("b", message), ("a", message | {"round": np.array([2])}))]  # fmt: skip
    again = algorithm.client(message, {}, Silo("a", x, y, q))[0]["delta.weight"]
    np.testing.assert_array_equal(again, replies[0])
    assert np.abs(replies[1] - replies[0]).max() > 1e-4
    assert np.abs(replies[2] - replies[0]).max() > 1e-4


def test_a_client_that_is_left_out_changes_nobody_elses_reply():
    # catches one random stream for all
    data = world(16, n=500)
    algorithm = training.FedFACTTraining([Constraint(global_tol=0.02)], training.settings_of(data, rounds=2))
    state = algorithm.start()
    first = algorithm.clients(algorithm.message(state), {n: {} for n in data}, data)
    state = algorithm.server(state, {n: r for n, (r, _) in first.items()})
    full = algorithm.clients(algorithm.message(state), {n: {} for n in data}, data)
    less = algorithm.clients(algorithm.message(state), {"c2": {}, "c3": {}}, {n: data[n] for n in ("c2", "c3")})
    for name, (reply, _) in less.items():
        for key, value in reply.items():
            np.testing.assert_allclose(full[name][0][key], value, rtol=0, atol=1e-12)


# -- what is served -------------------------------------------------------------------------------------------------


def test_parameters_survive_safetensors_and_rows_may_be_of_several_clients():
    # catches names that collide, and rows served by another client's model
    data = world(20, n=500)
    data = {n.replace("c", "site/"): Silo(n.replace("c", "site/"), s.x, s.y, s.members) for n, s in data.items()}
    _, _, served = run(data, 0.02, rounds=5, hidden=2, average=2)
    again = training.Trained.of(load(save(served.parameters())))
    x = np.concatenate([s.x for s in data.values()])
    who = np.concatenate([[n] * len(s.y) for n, s in data.items()])
    want = np.concatenate([served.predict_proba(s.x, n) for n, s in data.items()])
    np.testing.assert_allclose(again.predict_proba(x, who), want, atol=1e-15)
    np.testing.assert_allclose(want.sum(1), 1.0, atol=1e-12)
    assert again.predict_proba(x).shape == (len(x), 2)


def test_bad_questions_to_what_is_served_are_refused():
    # catches a stranger who is served in silence, and columns in another order or number
    data = world(21, n=300)
    served = run(data, 0.02, rounds=2)[2]
    with pytest.raises(InputError, match="client 'z'"):
        served.predict_proba(data["c0"].x, "z")
    with pytest.raises(InputError, match=r"features of shape \(2, 3\)"):
        served.predict_proba(np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"clients of shape \(1,\)"):
        served.predict_proba(data["c0"].x, ["c0"])


def test_settings_and_silos_that_disagree_are_refused():
    # catches clients with other columns, and constraints without groups
    data = world(22, n=300)
    with pytest.raises(InputError, match="no silos"):
        training.settings_of({})
    with pytest.raises(InputError, match="under the name 'z'"):
        training.settings_of({"z": data["c0"]})
    narrow = {**data, "c1": Silo("c1", data["c1"].x[:, :2], data["c1"].y, data["c1"].members)}
    with pytest.raises(InputError, match="client 'c1' with features"):
        training.settings_of(narrow)
    with pytest.raises(InputError, match="2 constraints"):
        training.FedFACTTraining([Constraint(), Constraint()], training.settings_of(data))
    with pytest.raises(InputError, match=r"Training\.rounds = 0"):
        training.settings_of(data, rounds=0)


@pytest.mark.parametrize("hidden", [0, 3])
def test_float32_gives_the_models_of_float64_to_its_precision_and_stays_float32(hidden):
    # catches a promotion on the way: messages of twice the size, or replies of another type than their template
    data = world(23, n=500)
    small = {n: Silo(n, s.x.astype(np.float32), s.y, s.members) for n, s in data.items()}
    want, _, served = run(data, 0.05, rounds=5, hidden=hidden)
    got, privates, again = run(small, 0.05, rounds=5, hidden=hidden)
    models = [v for k, v in got.items() if k.startswith("theta.")]
    models += [v for own in privates.values() for k, v in own.items() if k.startswith("phi.")]
    assert {v.dtype for v in models} == {np.dtype(np.float32)}
    assert not any(entry["quarantined"] for entry in got["log"])
    for name, silo in small.items():
        np.testing.assert_allclose(
            again.predict_proba(silo.x, name), served.predict_proba(data[name].x, name), atol=2e-2
        )
    assert set(want) == set(got)
