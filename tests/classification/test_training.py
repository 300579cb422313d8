"""FedFACT's training against the theory of its loss, the convex optimum, and federated averaging."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.classification import training
from upright.classification.silos import Silo, one_hot, silos_of
from upright.contract import InputError
from upright.federation.rounds import drive, from_tensors, to_tensors
from upright.maths.parity.program import Constraint, solve
from upright.maths.parity.rates import CRITERIA, contrasts, masses, rates, strata
from upright.maths.parity.site import Site

INF = float("inf")


def world(seed=0, n=2000, k=4, groups=2, m=2):
    """Silos with a planted gap: the first feature follows the group and moves the label."""
    rng = np.random.default_rng(seed)
    a, who = rng.integers(0, groups, n), rng.integers(0, k, n)
    x = rng.normal(size=(n, 4))
    x[:, 0] += 1.5 * a
    x[:, 1] += 0.3 * who
    score = x[:, 0] + x[:, 2] - 0.7 + rng.logistic(size=n)
    y = np.digitize(score, np.linspace(-1.0, 2.0, m - 1) if m > 2 else [0.0]).astype(np.int64)
    return silos_of(x, y, [f"c{i}" for i in who], [a])


def run(data, tolerances=(INF, INF), **settings):
    config = training.settings_of(data, **settings)
    own = [Constraint(global_tol=tolerances[0], local_tol=tolerances[1]) for _ in config.groups]
    algorithm = training.FedFACTTraining(own, config)
    state, privates = drive(algorithm, data)
    return state, privates, training.trained(state, privates)


def measured(served, data):
    """Accuracy, gap of everybody, gap of each client: counted here, without the library's rates."""
    h, a, y, local = [], [], [], []
    for name, silo in data.items():
        own, group = served.predict_proba(silo.x, name).argmax(1), silo.members[0].argmax(1)
        h.append(own), a.append(group), y.append(silo.y)
        local.append(own[group == 1].mean() - own[group == 0].mean())
    h, a, y = map(np.concatenate, (h, a, y))
    return (h == y).mean(), h[a == 1].mean() - h[a == 0].mean(), local


# -- the loss -------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.floats(0.0, 3.0))
def test_loss_is_calibrated_on_a_finite_world(seed, m, more):
    # spec 2.12, 6: catches transposed costs, a shift that changes decisions, a loss without its groups
    rng = np.random.default_rng(seed)
    points, groups = 4, 3
    pa = rng.dirichlet(np.ones(groups), points)  # P(a | x), (X, G)
    eta = rng.dirichlet(np.ones(m), (points, groups))  # P(y | x, a), (X, G, m)
    raw = np.eye(m) + 0.5 * rng.normal(size=(groups, m, m))
    costs = raw + max(0.0, -raw.min()) + more + 0.05
    cells = list(itertools.product(range(points), range(groups), range(m)))
    x, a, y = (torch.tensor(column) for column in zip(*cells, strict=True))
    weight = torch.tensor([pa[i, g] * eta[i, g, j] for i, g, j in cells])
    scores = torch.zeros(points, m, dtype=torch.float64, requires_grad=True)
    steps = torch.optim.LBFGS([scores], max_iter=300, tolerance_grad=1e-10, tolerance_change=1e-14,
                              line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        steps.zero_grad()
        loss = (weight * training.cost_sensitive_loss(scores[x], y, torch.from_numpy(costs), a)).sum()
        loss.backward()
        return loss

    steps.step(closure)
    found = torch.softmax(scores, dim=-1).detach().numpy()
    worth = np.einsum("xg,xgj,gji->xi", pa, eta, costs)
    np.testing.assert_allclose(found, worth / worth.sum(1, keepdims=True), atol=1e-5)
    plain = np.einsum("xg,xgj,gji->xi", pa, eta, raw)  # without kappa
    clear = np.diff(np.sort(plain, axis=1), axis=1)[:, -1] > 1e-3
    np.testing.assert_array_equal(found.argmax(1)[clear], plain.argmax(1)[clear])


def test_normalised_rows_are_a_shift_and_a_scale_and_leave_labels_alone():
    # catches a kappa or a scale for each row, and labels that become smoothed labels
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 3))
    own = training.normalised(rows)
    assert own.min() == 0.0
    assert math.isclose(own.sum(1).mean(), 1.0)
    scale = (rows[1, 0] - rows[0, 0]) / (own[1, 0] - own[0, 0])
    np.testing.assert_allclose(rows - rows.min(), own * scale, atol=1e-12)
    labels = one_hot(rng.integers(0, 3, 50), 3)
    np.testing.assert_array_equal(training.normalised(labels), labels)
    np.testing.assert_array_equal(training.normalised(np.zeros((4, 2))), np.full((4, 2), 0.5))


@pytest.mark.parametrize(
    ("costs", "group"),
    [(torch.ones(2, 2) * -1, None), (torch.ones(3, 2, 2), None), (torch.ones(2, 3), None),
     (torch.ones(2, 2), torch.zeros(4, dtype=torch.int64))],
)  # fmt: skip
def test_costs_of_another_shape_or_below_zero_are_refused(costs, group):
    # catches a loss that is not bounded from below
    with pytest.raises(InputError, match="costs of shape"):
        training.cost_sensitive_loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), costs, group)


@pytest.mark.parametrize("criterion", CRITERIA[:3])
def test_weights_of_the_loss_are_the_matrix_of_the_papers_table(criterion, monkeypatch):
    # spec 2.2 and 2.3: M(a, k) from D^{a,k} and D^{a,k}_k entry by entry; catches a wrong sign or scale of either price
    rng = np.random.default_rng(5)
    m, g = 3, 2
    data = world(5, n=400, k=3, groups=g, m=m)
    config = training.settings_of(data, rounds=1)
    own = Constraint(criterion, 0.1, 0.1, gap="average")
    algorithm = training.FedFACTTraining([own], config)
    state = algorithm.start()
    replies = {n: r for n, (r, _) in algorithm.clients(algorithm.message(state), {n: {} for n in data}, data).items()}
    state = algorithm.server(state, replies)
    lam = rng.normal(size=state["prices"].shape)  # (S, G, m), flat
    state = {**state, "prices": lam}
    nu = rng.normal(size=lam.shape)
    seen = {}
    monkeypatch.setattr(training, "normalised", lambda rows: seen.setdefault("rows", rows) * 0 + 1.0)
    k = "c1"
    private = {"prices": nu, "mix": np.array([0.5]), **{f"phi.{n}": v for n, v in training.model_of(state).items()}}
    algorithm.client(algorithm.message(state), private, data[k])
    joint = {(n, a, y): float((s.members[0][:, a] * (s.y == y)).sum()) for n, s in data.items()
             for a in range(g) for y in range(m)}  # fmt: skip
    total = sum(joint.values())
    joint = {key: v / total for key, v in joint.items()}

    def p(client=None, a=None, y=None, no=None):
        return sum(v for (n, b, c), v in joint.items() if (client is None or n == client) and (a is None or a == b)
                   and (y is None or y == c) and (no is None or no != c))  # fmt: skip

    parts = {"demographic_parity": [{}], "equal_opportunity": ["y"], "equalized_odds": ["y", "no"]}[criterion]
    for row, label, a in zip(seen["rows"], data[k].y, data[k].members[0].argmax(1), strict=True):
        want = np.eye(m)[label]
        for s, part in enumerate(parts):
            for b, j in itertools.product(range(g), range(m)):
                inside = {} if part == {} else {part: j}
                if (part == "y" and label != j) or (part == "no" and label == j):
                    continue
                at = (s * g + b) * m + j
                pooled = p(k, a) * (b == a) / p(a=b, **inside) - p(k, a) / p(**inside)
                local = p(k, a) * (b == a) / p(k, b, **inside) - p(k, a) / p(k, **inside)
                want[j] -= (lam[at] * pooled + p(k) * nu[at] * local) / p(k, a)  # mu = p_k nu
        np.testing.assert_allclose(row, want, atol=1e-10)


# -- without constraints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("average", [1, 3])
def test_infinite_tolerance_is_federated_averaging_bit_for_bit(hidden, average):
    # catches a shift or scale without prices, other batches, another initialisation
    data = world(1, n=600)
    state, _, served = run(data, rounds=8, hidden=hidden, average=average)
    plain, privates = drive(training.FedAvg(training.settings_of(data, rounds=8, hidden=hidden, average=average)), data)
    base = training.trained(plain, privates)
    for key in [key for key in plain if key.startswith("theta.")]:
        np.testing.assert_array_equal(state[key], plain[key])
    for name, silo in data.items():
        np.testing.assert_array_equal(served.predict_proba(silo.x, name), base.predict_proba(silo.x, name))
    assert state["history"][-1]["weights"] == dict.fromkeys(data, 1.0)
    assert not state["prices"].any()


# -- FedFACT --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfair():
    data = world(7, n=4000)
    return data, measured(run(data)[2], data)


@pytest.mark.parametrize("tolerances", [(0.01, INF), (INF, 0.01), (0.05, 0.05)])
def test_gap_is_closed_at_the_price_of_the_convex_optimum(unfair, tolerances):
    # catches slack in gap or accuracy: the optimum of the program with the true probabilities is the yardstick
    data, base = unfair
    state, _, served = run(data, tolerances)
    accuracy, gap, local = measured(served, data)
    n = sum(len(s.y) for s in data.values())
    sites = []
    for silo in data.values():
        p, q = (1 / (1 + np.exp(-z)) for z in (silo.x[:, 0] + silo.x[:, 2] - 0.7, 1.5 * silo.x[:, 0] - 1.125))
        member = np.column_stack([1 - q, q])  # P(group | x): as blind as the model
        sites.append(Site(np.column_stack([1 - p, p]), (member,), np.full(len(p), 1 / n), ("demographic_parity",)))
    best = solve(sites, [Constraint(global_tol=tolerances[0], local_tol=tolerances[1])])
    reached = sum(
        float((h[np.arange(len(s.y)), s.y]).sum()) / n
        for s, h in zip(data.values(), (site.decide(t, best.beta) for site, t in zip(sites, best.tables, strict=True)),
                        strict=True)
    )  # fmt: skip
    assert abs(base[1]) > 0.3
    assert abs(gap) < (0.04 if tolerances[0] == 0.01 else 0.09)
    if np.isfinite(tolerances[1]):
        assert max(map(abs, local)) < tolerances[1] + 0.06
    assert abs(accuracy - reached) < 0.02
    assert state["unreached"] == []
    assert np.abs(state["prices"]).sum() <= 5.0 + 1e-12


@pytest.mark.parametrize("tolerances", [(0.0, INF), (INF, 0.0)])
def test_a_flipped_sign_of_the_prices_makes_the_gap_larger(unfair, tolerances, monkeypatch):
    # spec 2.3: catches the printed minus before the local prices, and a dual step downhill
    data, base = unfair
    right = measured(run(data, tolerances, rounds=25)[2], data)
    step = training.dual_step
    monkeypatch.setattr(training, "dual_step", lambda price, gap, *rest: step(price, -gap, *rest))
    wrong = measured(run(data, tolerances, rounds=25)[2], data)
    assert abs(right[1]) < abs(base[1]) - 0.2
    assert abs(wrong[1]) > abs(base[1]) + 0.1


def test_small_groups_do_not_make_prices_swing():
    # deviation 5: catches steps of one length: here they swing between gaps of 0 and 0.7
    rng = np.random.default_rng(1)
    a, who, x = (rng.random(4000) < 0.85).astype(np.int64), rng.integers(0, 3, 4000), rng.normal(size=(4000, 4))
    x[:, 3] = a + 0.2 * x[:, 3]  # the group is all but known from the features
    y = (2 * x[:, 1] + 1.5 * a - 2.2 + rng.logistic(size=4000) > 0).astype(np.int64)
    own = training.settings_of(data := silos_of(x, y, who, [a]), rounds=40)
    gaps = {}
    for tol in (INF, 0.05):
        state, _ = drive(training.FedFACTTraining([Constraint("equalized_odds", global_tol=tol)], own), data)
        gaps[tol] = [entry["global_gap"] for entry in state["history"][-10:]]
    assert min(gaps[INF]) > 0.1
    assert max(gaps[0.05]) < 0.1
    assert np.mean(gaps[0.05]) < 0.06


def test_first_prices_are_the_step_written_out():
    # catches a tolerance that is not scaled with its step, and masses of the wrong population
    data = world(24, n=500, k=2)
    algorithm = training.FedFACTTraining([Constraint(global_tol=0.1)], training.settings_of(data, rounds=2))
    kept = []
    drive(algorithm, data, on_round=lambda s, p: kept.append(s))
    state = kept[2]
    decided = sum(state[f"decided/{n}"].reshape(2, 2) for n in data)  # (G, m)
    mass = sum(state[f"mass/{n}"].reshape(2, 2) for n in data)
    d = decided[0] / mass[0] - decided[1] / mass[1]
    assert np.abs(d).max() > 0.1
    p = mass[:, 0] / mass[:, 0].sum()
    step = 2 * 0.1 * 4.0 / (1 / p[0] + 1 / p[1])  # one price where two classes say the same
    wanted = np.array([0.0, np.sign(d[1]) * step * max(abs(d[1]) - 0.1, 0.0)])
    np.testing.assert_allclose(state["prices"], wanted, atol=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("gap", ["pairwise", "average"])
def test_gaps_that_are_logged_are_those_of_the_pooled_decisions(criterion, gap):
    # law of total probability: sums of clients' counts give the rates of everybody; several constraints, 3 classes
    rng = np.random.default_rng(11)
    data = world(11, n=500, k=3, groups=3, m=3)
    data = {n: Silo(n, s.x, s.y, (s.members[0], one_hot(rng.integers(0, 2, len(s.y)), 2))) for n, s in data.items()}
    own = [Constraint(criterion, 0.05, 0.1, gap), Constraint("demographic_parity", 0.02, INF, "pairwise")]
    config = training.settings_of(data, rounds=6, hidden=3, batch=64)
    algorithm = training.FedFACTTraining(own, config)
    kept = []
    state, _ = drive(algorithm, data, on_round=lambda s, p: kept.append((s, p)))
    served = training.trained(*kept[-2])
    y = one_hot(np.concatenate([s.y for s in data.values()]), 3)
    h = one_hot(np.concatenate([served.predict_proba(s.x, n).argmax(1) for n, s in data.items()]), 3)
    largest = 0.0
    for c, one in enumerate(own):
        q, f = np.concatenate([s.members[c] for s in data.values()]), strata(one.criterion, y)
        chosen = np.isin(np.arange(3), one.chosen(3))
        mass = masses(f, q, np.ones(len(y)), 3)
        t = contrasts(one.gap, mass, np.broadcast_to(chosen, mass.shape))
        largest = max(largest, float(np.abs(np.einsum("srgj,sgj->srj", t, rates(f, q, np.ones(len(y)), h))).max()))
    assert math.isclose(state["history"][-1]["global_gap"], largest, abs_tol=1e-12)
    assert math.isclose(state["history"][-1]["error"], (h.argmax(1) != y.argmax(1)).mean(), abs_tol=1e-12)
    assert all(entry["duality_gap"] >= -1e-12 for entry in state["history"])


def test_one_client_global_and_local_constraints_coincide():
    # spec 2.12, 8: catches different steps, scales or signs of the two kinds of price
    data = world(4, n=800, k=1)
    pooled, _, one = run(data, (0.02, INF), rounds=20)
    local, privates, two = run(data, (INF, 0.02), rounds=20)
    np.testing.assert_allclose(pooled["theta.weight"], local["theta.weight"], atol=1e-10)
    np.testing.assert_allclose(pooled["prices"], privates["c0"]["prices"], atol=1e-10)
    np.testing.assert_allclose(one.predict_proba(data["c0"].x, "c0"), two.predict_proba(data["c0"].x, "c0"), atol=1e-10)


def test_order_of_clients_and_names_of_groups_do_not_matter():
    # spec 2.12, 9: catches sums by position, and a sign that follows which group comes first
    data = world(6, n=600, groups=3)
    want, _, served = run(data, (0.02, 0.05), rounds=10)
    turned, _, _ = run(dict(reversed(data.items())), (0.02, 0.05), rounds=10)
    other = {n: Silo(n, s.x, s.y, (s.members[0][:, [2, 0, 1]],)) for n, s in data.items()}
    renamed, _, again = run(other, (0.02, 0.05), rounds=10)
    for key in ("theta.weight", "theta.bias"):
        np.testing.assert_allclose(turned[key], want[key], rtol=0, atol=1e-12)
        np.testing.assert_allclose(renamed[key], want[key], rtol=0, atol=1e-9)
    for name, silo in data.items():
        np.testing.assert_allclose(again.predict_proba(silo.x, name), served.predict_proba(silo.x, name), atol=1e-9)


def test_weight_of_two_models_has_the_regret_of_exponentiated_gradient():
    # spec 2.12, 10: catches a weight that moves the wrong way, and losses that are not clipped
    data, seen = world(8, n=600), []
    config = training.settings_of(data, rounds=25, expert_step=0.5, loss_bound=0.66, hidden=3)
    algorithm = training.FedFACTTraining([Constraint(global_tol=0.01)], config)
    drive(algorithm, data, on_round=lambda s, p: seen.append({k: v for k, v in s.items() if k.startswith("report/")}))
    for name in data:
        reports = np.array([s[f"report/{name}"] for s in seen if s])  # (T, 7 + C)
        first, second = np.minimum(reports[:, 0], 0.66), np.minimum(reports[:, 1], 0.66)
        w = np.r_[0.5, reports[:-1, 6]]
        spent = (w * first + (1 - w) * second).sum()
        best = min(first.sum(), second.sum())
        assert spent <= best + math.log(2) / 0.5 + 0.5 * len(w) * 0.66**2 / 8 + 1e-12
        np.testing.assert_array_equal(np.sign(reports[:, 6] - w), np.sign(second - first))


def test_a_tolerance_that_the_model_cannot_reach_is_said():
    # catches silence where prices end at their bound
    data = world(9, n=600)
    assert run(data, (0.0, 0.0), rounds=10, radius=0.05)[0]["unreached"] == [
        "demographic_parity (constraint 0) of everybody: tolerance not reached with this model",
        *(f"demographic_parity (constraint 0) of client c{k}: tolerance not reached with this model" for k in range(4)),
    ]


def test_local_tolerances_may_differ_between_clients():
    # catches tolerances that are taken in another order than the names
    data = world(10, n=3000, k=3)
    config = training.settings_of(data, rounds=40)
    tolerances = {"c2": 0.01, "c0": INF, "c1": INF}
    own = [Constraint(local_tol=list(tolerances.values()))]
    algorithm = training.FedFACTTraining(own, config, clients=list(tolerances))
    _, privates = drive(algorithm, data)
    assert {n: bool(p["prices"].any()) for n, p in privates.items()} == {"c0": False, "c1": False, "c2": True}
    with pytest.raises(InputError, match="3 local tolerances"):
        training.FedFACTTraining(own, config, clients=["c0"])


def test_average_serves_the_mean_of_the_last_probabilities():
    # catches an average of parameters, and iterates that do not belong together
    data, kept = world(12, n=500), []
    config = training.settings_of(data, rounds=6, hidden=3, average=3)
    algorithm = training.FedFACTTraining([Constraint(global_tol=0.01)], config)
    last = {}

    def keep(state, privates):
        now = {k: v for k, v in state.items() if not k.startswith("past.")}
        own = {n: {k: v for k, v in p.items() if not k.startswith("past.")} for n, p in privates.items()}
        kept.append(training.trained(now, own))
        last["all"] = training.trained(state, privates)

    drive(algorithm, data, on_round=keep)
    for name, silo in data.items():
        want = np.mean([one.predict_proba(silo.x, name) for one in kept[-3:]], axis=0)
        np.testing.assert_allclose(last["all"].predict_proba(silo.x, name), want, atol=1e-12)


# -- rounds ---------------------------------------------------------------------------------------------------------


class Alone:
    """The same algorithm without `clients`: one client after another, as Flower runs them."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name == "clients":
            raise AttributeError(name)
        return getattr(self.inner, name)


@pytest.mark.parametrize("hidden", [0, 3])
def test_all_clients_in_one_program_equal_one_after_another(hidden):
    # catches anything in a client's round that depends on the others
    data = world(13, n=500)
    algorithm = training.FedFACTTraining(
        [Constraint(global_tol=0.02, local_tol=0.05)], training.settings_of(data, rounds=6, hidden=hidden)
    )
    state, privates = drive(algorithm, data)
    again, memories = drive(Alone(algorithm), data)
    assert set(state) == set(again)
    for key, value in state.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(again[key], value, rtol=0, atol=1e-12)
    for name, own in privates.items():
        for key, value in own.items():
            np.testing.assert_allclose(memories[name][key], value, rtol=0, atol=1e-12)


def test_an_absent_client_counts_with_what_it_sent_last_and_is_never_fair():
    # spec 6.4: catches an absent client whose counts become zero, or who leaves the population
    data = world(14, n=1200)
    config = training.settings_of(data, rounds=12)
    algorithm = training.FedFACTTraining([Constraint(global_tol=0.0)], config)
    kept = []
    with pytest.warns(RuntimeWarning, match="old reply of clients .*: c0$"):
        drive(algorithm, data, present=lambda t, n: n != "c0" or t <= 4, on_round=lambda s, p: kept.append(s))
    by_round = {s["round"] - 1: s for s in kept}
    last = by_round[4]["decided/c0"]
    assert last.any()
    for turn in range(5, 13):
        state = by_round[turn]
        np.testing.assert_array_equal(state["decided/c0"], last)
        decided = sum(state[f"decided/{n}"].reshape(2, 2) for n in data)  # (G, m)
        mass = sum(state[f"mass/{n}"].reshape(2, 2) for n in data)
        r = decided / mass
        assert math.isclose(state["history"][-1]["global_gap"], np.abs(r[0] - r[1]).max(), abs_tol=1e-12)
        assert set(state["history"][-1]["weights"]) == {"c1", "c2", "c3"}


def test_a_client_without_any_counts_is_left_out_with_its_masses_and_may_come_later():
    # catches masses in the denominator whose decisions are missing: everybody would look less unfair
    data = world(15, n=1200)
    config = training.settings_of(data, rounds=8)
    algorithm = training.FedFACTTraining([Constraint(global_tol=0.0)], config)
    kept = []
    drive(algorithm, data, on_round=lambda s, p: kept.append(s),
          present=lambda t, n: (n != "c0" or t == 0 or t > 4) and (n != "c1" or t > 2))  # fmt: skip
    by_round = {s["round"] - 1: s for s in kept}
    assert "mass/c0" in by_round[0]
    assert "mass/c1" not in by_round[2]
    assert "mass/c1" in by_round[3]  # its first message holds masses alone
    assert "decided/c1" not in by_round[3]
    for turn, names in ((2, ["c2", "c3"]), (4, ["c1", "c2", "c3"]), (6, list(data))):
        state = by_round[turn]
        decided = sum(state[f"decided/{n}"].reshape(2, 2) for n in names)
        mass = sum(state[f"mass/{n}"].reshape(2, 2) for n in names)
        r = decided / mass
        assert math.isclose(state["history"][-1]["global_gap"], np.abs(r[0] - r[1]).max(), abs_tol=1e-12)


def test_saved_and_resumed_from_any_round_the_end_is_the_same():
    # catches state outside of state and memories
    data = world(17, n=400)
    algorithm = training.FedFACTTraining(
        [Constraint(global_tol=0.02, local_tol=0.1)], training.settings_of(data, rounds=5, hidden=2, average=2)
    )
    kept = []
    want, memories = drive(algorithm, data, on_round=lambda s, p: kept.append((s, p)))
    for state, privates in kept[:-1]:
        buffer = io.BytesIO()
        torch.save(to_tensors([state, privates]), buffer)
        buffer.seek(0)
        own, private = from_tensors(torch.load(buffer, weights_only=True))
        got, again = drive(algorithm, data, resume=(own, private))
        assert got["history"] == want["history"]
        for key in [k for k, v in want.items() if isinstance(v, np.ndarray)]:
            np.testing.assert_array_equal(got[key], want[key])
        for name in data:
            for key, value in memories[name].items():
                np.testing.assert_array_equal(again[name][key], value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d * 0 - 1.0, "decided outside its range"),
        (lambda d: d * 1000.0, "decided outside its range"),
        (lambda d: d * 0.0, "decided does not sum"),  # nobody is decided: looks perfectly fair
    ],
)
def test_counts_that_cannot_be_are_quarantined(change, reason):
    # spec 6.4: catches a client that lies about its decisions beyond what its masses allow
    data = world(18, n=400)
    algorithm = training.FedFACTTraining([Constraint(global_tol=0.02)], training.settings_of(data, rounds=2))

    class Liar(Alone):
        def client(self, message, private, own):
            reply, private = self.inner.client(message, private, own)
            if own.name == "c1" and "decided" in reply:
                reply = reply | {"decided": change(reply["decided"])}
            return reply, private

    log = []
    state, _ = drive(Liar(algorithm), data, on_round=lambda s, p: log.append(s["log"][-1]))
    assert [list(e["quarantined_names"]) for e in log] == [[], ["c1"], ["c1"]]
    assert reason in log[1]["quarantined_names"]["c1"]
    assert "decided/c1" not in state


def test_a_client_that_claims_a_billion_rows_does_not_switch_off_the_prices():
    # catches true masses beside a count that makes the share of everybody else nothing, without a word
    data = world(18, n=400)
    algorithm = training.FedFACTTraining([Constraint(global_tol=0.0)], training.settings_of(data, rounds=4))

    class Liar(Alone):
        def client(self, message, private, own):
            reply, private = self.inner.client(message, private, own)
            return (reply | {"count": np.array([1e9])} if own.name == "c1" and "count" in reply else reply), private

    log = []
    state, _ = drive(Liar(algorithm), data, on_round=lambda s, p: log.append(s["log"][-1]))
    assert [e["quarantined_names"] for e in log] == [{"c1": "masses that do not fit 1e+09 rows"}] * 5
    want, _ = drive(algorithm, {n: own for n, own in data.items() if n != "c1"})
    np.testing.assert_array_equal(state["prices"], want["prices"])
    assert state["prices"].any()


def test_sizes_of_messages_are_those_of_the_papers_table():
    # spec 2.6: model + groups x classes floats each way; catches prices of pairs or masses that are sent every round
    data = world(19, n=600, groups=3, m=3)
    algorithm = training.FedFACTTraining([Constraint(global_tol=0.02)], training.settings_of(data, rounds=3))
    state, _ = drive(algorithm, data)
    model, dim = 4 * 3 + 3, 3 * 3
    down = {k: v.size for k, v in algorithm.message(state).items()}
    up = {k: v.size for k, v in algorithm.template(state, "c0").items()}
    assert sum(down.values()) == model + dim + 1 + len(data)  # the round, and a number a client that is known
    assert sum(up.values()) == model + dim + 7 + 1  # the report
    assert sum(v.size for v in algorithm.template(algorithm.start(), "c0").values()) == dim + 1  # once
