"""Rounds against the program on all rows together: the same answer, small messages, and clients that come and go."""

from __future__ import annotations

import numpy as np
import pytest

from upright.classification.exchange import FedFACTPost, Scores
from upright.contract import InputError
from upright.federation.rounds import drive, from_tensors, settle, to_tensors
from upright.maths.parity.constraints import Constraint
from upright.maths.parity.program import solve
from upright.maths.parity.rates import strata
from upright.maths.parity.site import Site, adjusted

INF = float("inf")
BETA = 0.002


def world(seed=0, n=1200, m=2, groups=3, clients=3):
    """Scores by client: probabilities that differ by group and client."""
    rng = np.random.default_rng(seed)
    g, k = rng.integers(0, groups, n), rng.integers(0, clients, n)
    z = 1.2 * rng.normal(size=(n, m)) + 0.9 * np.eye(m)[g % m] + 0.4 * np.eye(m)[(g + k) % m]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return {f"c{i}": Scores(f"c{i}", p[k == i], (np.eye(groups)[g[k == i]],)) for i in range(clients)}


def pooled(data, constraints):
    """The program on all rows together: its sites and its solution."""
    n, criteria = sum(len(d.p) for d in data.values()), tuple(c.criterion for c in constraints)
    sites = [Site(d.p, d.members, np.full(len(d.p), 1 / n), criteria) for d in data.values()]
    return sites, solve(sites, constraints, BETA)


def logged(algorithm, data, **options):
    """Drive an algorithm, and keep each entry of the log."""
    log = []
    state, privates = drive(algorithm, data, on_round=lambda s, p: log.append(s["log"][-1]), **options)
    return state, privates, log


def agree(data, constraints, tables):
    """Whether tables decide as the program on all rows does."""
    sites, wanted = pooled(data, constraints)
    assert wanted.converged
    for site, table, name in zip(sites, wanted.tables, data, strict=True):
        z, own = (adjusted(site.p, site.members, site.criteria, t) for t in (table, tables[name]))
        away = (own - own.mean(1, keepdims=True)) - (z - z.mean(1, keepdims=True))
        np.testing.assert_allclose(away, 0.0, atol=1e-4)
        np.testing.assert_array_equal(own.argmax(1), z.argmax(1))
        np.testing.assert_allclose(site.decide(tables[name], BETA), site.decide(table, BETA), atol=1e-3)


def gap_of(data, tables, criterion="demographic_parity"):
    """The largest gap of the randomised decisions of everybody, counted here."""
    up, down = 0.0, 0.0
    for name, d in data.items():
        z = adjusted(d.p, d.members, (criterion,), tables[name]) / BETA
        h = np.exp(z - z.max(1, keepdims=True))
        h /= h.sum(1, keepdims=True)
        for f in strata(criterion, d.p):
            up, down = up + d.members[0].T @ (f * h), down + d.members[0].T @ np.broadcast_to(f, h.shape)
    return np.ptp(up / down, axis=0).max()


# -- the same answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize(("everybody", "inside"), [(0.02, INF), (INF, 0.03), (0.02, 0.04), (0.0, 0.0)])
@pytest.mark.parametrize("criterion", ["demographic_parity", "equalized_odds"])
def test_rounds_decide_as_the_program_on_all_rows(criterion, everybody, inside, m):
    # catches a share, a sign or a local price that is lost between server and client
    if criterion == "equalized_odds" and everybody == 0.0:
        everybody, inside = 0.005, 0.01
    data, wanted = world(m, m=m), [Constraint(criterion, everybody, inside)]
    algorithm = FedFACTPost(wanted, [3], m)
    state, privates = drive(algorithm, data)
    assert state["over"]
    agree(data, wanted, algorithm.tables(privates))


def test_two_constraints_and_tolerances_of_each_client():
    # catches tolerances that are handed out in the order of arrival: they belong to names
    data = world(5, clients=3)
    data = {n: Scores(n, d.p, (d.members[0], d.members[0][:, :2] + d.members[0][:, 2:] * [[1.0, 0.0]]))
            for n, d in data.items()}  # fmt: skip
    wanted = [Constraint("demographic_parity", 0.03, (0.02, INF, 0.08)), Constraint("equal_opportunity", 0.01)]
    algorithm = FedFACTPost(wanted, [3, 2], 2, clients=["c0", "c1", "c2"])
    state, privates = drive(algorithm, data)
    assert state["over"]
    agree(data, wanted, algorithm.tables(privates))


def test_the_order_of_clients_changes_nothing():
    # catches sums in the order of arrival
    data, wanted = world(6), [Constraint("demographic_parity", 0.02, 0.04)]
    found = [drive(FedFACTPost(wanted, [3], 2), dict(pairs)) for pairs in (data.items(), reversed(data.items()))]
    np.testing.assert_array_equal(found[0][0]["prices"], found[1][0]["prices"])
    for name in data:
        np.testing.assert_array_equal(found[0][1][name]["table"], found[1][1][name]["table"])


# -- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("criterion", "many"), [("demographic_parity", 1), ("equalized_odds", 2)])
def test_messages_have_the_size_of_the_table_whatever_the_rows(criterion, many):
    # groups x classes floats each way, twice for true and false positives (2.6): no row, label or local price is sent
    size = many * 3 * 4
    for n in (300, 1500):
        data, sent = world(7, n=n, m=4), []
        algorithm = FedFACTPost([Constraint(criterion, 0.02, 0.05)], [3], 4)
        ask, answer = algorithm.message, algorithm.client

        def message(state, ask=ask, sent=sent):
            sent.append({k: v.size for k, v in ask(state).items()})
            return ask(state)

        def client(message, private, one, answer=answer, sent=sent):
            reply, private = answer(message, private, one)
            sent.append({k: v.size for k, v in reply.items()})
            return reply, private

        algorithm.message, algorithm.client = message, client
        drive(algorithm, data)
        assert sent[0] == {"round": 1, "known": 0, "setting": 3, "table": size}
        assert sent[1:4] == [{"mass": size, "count": 1}] * 3
        for i, one in enumerate(sent[4:]):
            down = {"round": 1, "known": 3, "setting": 3, "table": size}
            assert one == (down if i % 4 == 0 else {"sums": size, "value": 1})


def test_a_state_that_was_saved_goes_on_to_the_same_end():
    # catches a part of the search that is no array, number or list and is lost in a checkpoint
    data, wanted = world(8), [Constraint("demographic_parity", 0.02, 0.04)]
    algorithm, kept = FedFACTPost(wanted, [3], 2), []
    state, privates = drive(algorithm, data, on_round=lambda s, p: kept.append(to_tensors((s, p))))
    again, others = drive(algorithm, data, resume=from_tensors(kept[7]))
    assert state["round"] == again["round"]
    np.testing.assert_array_equal(state["prices"], again["prices"])
    for name in data:
        np.testing.assert_array_equal(privates[name]["table"], others[name]["table"])


# -- absence ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [1, 2, 3, 4, 6, 11, -3, -2, -1])
def test_a_client_that_is_absent_for_one_round_changes_nothing_in_the_end(gone):
    # catches sums of those present alone, steps measured against the objective of other clients (the search then never
    # ends), and an end that the absent client is not told of
    data, wanted = world(9), [Constraint("demographic_parity", 0.02, 0.04)]
    algorithm = FedFACTPost(wanted, [3], 2)
    if gone < 0:  # counted from the last round
        gone += drive(algorithm, data)[0]["round"]
    state, privates, log = logged(algorithm, data, present=lambda r, name: (r, name) != (gone, "c1"))
    assert log[gone]["absent_names"] == ["c1"]
    assert state["over"]
    assert log[-1]["absent"] == 0
    agree(data, wanted, algorithm.tables(privates))


def test_clients_that_come_and_go_agree_once_they_stay():
    # catches a search that a change of clients leaves in a state it does not get out of
    data, wanted = world(9, clients=5), [Constraint("demographic_parity", 0.02, 0.04)]
    algorithm = FedFACTPost(wanted, [3], 2)
    here = np.random.default_rng(0).random((30, 5)) < 0.7
    state, privates, log = logged(
        algorithm, data, present=lambda r, name: r >= 30 or bool(here[r, int(name[1])]), least=0.2
    )
    assert sum(bool(entry["absent"]) for entry in log) > 15
    assert state["over"]
    agree(data, wanted, algorithm.tables(privates))


def test_a_client_that_comes_late_takes_part_from_then_on():
    # catches masses that are asked for in the first round only
    data, wanted = world(10), [Constraint("demographic_parity", 0.02, 0.04)]
    algorithm = FedFACTPost(wanted, [3], 2)
    state, privates, log = logged(algorithm, data, present=lambda r, name: name != "c2" or r >= 6)
    assert [entry["absent_names"] for entry in log[:7]] == [["c2"]] * 6 + [[]]
    assert state["over"]
    agree(data, wanted, algorithm.tables(privates))


def test_a_client_that_never_comes_takes_no_part():
    data, wanted = world(11), [Constraint("demographic_parity", 0.02, 0.04)]
    algorithm = FedFACTPost(wanted, [3], 2)
    _, privates, log = logged(algorithm, data, present=lambda r, name: name != "c2")
    assert all(entry["absent_names"] == ["c2"] for entry in log)
    assert set(algorithm.tables(privates)) == {"c0", "c1"}
    two = {name: data[name] for name in ("c0", "c1")}
    agree(two, wanted, algorithm.tables(privates))


def test_a_client_that_is_gone_for_good_is_never_counted_as_fair():
    # catches a gap that vanishes with the client that has it: only c2 treats groups apart, and the others have to
    # make up for what it last decided
    rng = np.random.default_rng(12)
    data = {}
    for i, shift in enumerate((0.0, 0.0, 2.0)):
        g = np.arange(400) % 2
        score = 1 / (1 + np.exp(-(rng.normal(size=400) + shift * (g - 0.5))))
        data[f"c{i}"] = Scores(f"c{i}", np.column_stack([1 - score, score]), (np.eye(2)[g],))
    wanted, last = [Constraint("demographic_parity", 0.02)], 2
    algorithm = FedFACTPost(wanted, [2], 2)
    with pytest.warns(RuntimeWarning, match="old reply of clients .*: c2$"):
        state, privates = drive(algorithm, data, present=lambda r, name: name != "c2" or r < last)
    assert state["over"]
    assert state["waited"] == 3
    tables = algorithm.tables(privates)
    own = state["sums/c2"].reshape(2, 2) / (state["mass/c2"].reshape(2, 2) / 1200)  # what it last said
    assert np.ptp(own, axis=0).max() > 0.3
    up = own * 200 + sum(
        d.members[0].T @ _soft(d, tables[n]) for n, d in data.items() if n != "c2"
    )  # decisions by group of all 1,200 rows, c2 as it was last heard of
    assert np.ptp(up / 600, axis=0).max() <= 0.02 + 1e-6
    others = {n: d for n, d in data.items() if n != "c2"}
    assert gap_of(others, tables) > 0.1  # they pay for it, in the other direction


def _soft(d, table):
    z = adjusted(d.p, d.members, ("demographic_parity",), table) / BETA
    h = np.exp(z - z.max(1, keepdims=True))
    return h / h.sum(1, keepdims=True)


# -- bad replies -----------------------------------------------------------------------------------------------------


class Broken(FedFACTPost):
    """One client answers nonsense in some rounds."""

    def __init__(self, change, rounds, *args, **options):
        super().__init__(*args, **options)
        self.change, self.bad = change, rounds

    def client(self, message, private, data):
        reply, private = super().client(message, private, data)
        if data.name == "c1" and int(message["round"][0]) in self.bad:
            reply = self.change(reply)
        return reply, private


@pytest.mark.parametrize(
    ("change", "rounds", "why"),
    [
        (lambda r: {**r, "sums": r["sums"] * np.nan}, {4}, "sums with 6 numbers that are not finite"),
        (lambda r: {**r, "value": r["value"] + np.inf}, {4}, "value with 1 numbers that are not finite"),
        (lambda r: {**r, "sums": 2.0 * r["sums"]}, {4},
         "sums outside their range: more decisions than rows, or fewer than none"),
        (lambda r: {**r, "sums": -r["sums"]}, {4},
         "sums outside their range: more decisions than rows, or fewer than none"),
        (lambda r: {**r, "mass": -r["mass"]}, {0}, "masses that do not fit {n} rows"),
        (lambda r: {**r, "mass": 3.0 * r["mass"]}, {0}, "masses that do not fit {n} rows"),
        (lambda r: {**r, "count": r["count"] + 0.5}, {0}, "masses that do not fit {half} rows"),
        (lambda r: {**r, "count": r["count"] * 0 + 1e9}, {0}, "masses that do not fit 1e+09 rows"),
        (lambda r: {"sums": r["sums"]}, {4}, "a reply without ['value'] and with [] besides"),
    ],
)  # fmt: skip
def test_a_reply_that_cannot_be_is_quarantined_and_changes_nothing_in_the_end(change, rounds, why):
    # catches a NaN that reaches the sums of everybody, and a client that claims more decisions than it has rows
    data, wanted = world(13), [Constraint("demographic_parity", 0.02, 0.04)]
    n = len(data["c1"].p)
    algorithm = Broken(change, rounds, wanted, [3], 2)
    state, privates, log = logged(algorithm, data)
    (round_,) = rounds
    assert log[round_]["quarantined_names"] == {"c1": why.format(n=n, half=n + 0.5)}
    assert all(not entry["quarantined"] for entry in log if entry["round"] != round_)
    assert state["over"]
    agree(data, wanted, algorithm.tables(privates))


def test_a_client_that_claims_a_billion_rows_does_not_switch_off_the_prices():
    # catches true masses beside a count that makes every rate of everybody nothing, without a word
    data, wanted = world(13), [Constraint("equalized_odds", 0.02, 0.04)]
    lie = lambda r: {**r, "count": np.array([1e9])} if "count" in r else r  # noqa: E731
    algorithm = Broken(lie, range(400), wanted, [3], 2)
    state, privates, log = logged(algorithm, data)
    assert {tuple(entry["quarantined_names"]) for entry in log} == {("c1",)}
    assert state["over"]
    agree({name: data[name] for name in ("c0", "c2")}, wanted, algorithm.tables(privates))


@pytest.mark.parametrize("criterion", ["demographic_parity", "equal_opportunity"])
@pytest.mark.parametrize("lie", ["sums of nothing", "a value with noise"])
def test_lies_that_cannot_be_seen_end_with_the_promised_warning(lie, criterion):
    # catches a search that halves its steps to the last round and ends without prices and without a word
    data, noise = world(16), np.random.default_rng(0)

    def change(reply):
        if "sums" not in reply:
            return reply
        if lie == "sums of nothing":
            return {**reply, "sums": 0.0 * reply["sums"]}
        return {**reply, "value": reply["value"] + noise.normal(size=1)}

    algorithm = Broken(change, range(400), [Constraint(criterion, 0.01)], [3], 2)
    algorithm.rounds = 60
    with pytest.warns(RuntimeWarning, match="not found in 60 rounds"):
        state, _ = drive(algorithm, data)
    assert "prices" not in state


def test_settle_names_the_quarantined_beside_the_absent():
    data = world(14)
    algorithm = FedFACTPost([Constraint()], [3], 2)
    state = algorithm.start()
    replies = {n: algorithm.client(algorithm.message(state), {}, d)[0] for n, d in data.items() if n != "c0"}
    replies["c1"] = {**replies["c1"], "mass": replies["c1"]["mass"] + np.nan}
    found = settle(algorithm, state, replies, list(data), least=0.3)
    assert (found["log"][0]["absent_names"], list(found["log"][0]["quarantined_names"])) == (["c0"], ["c1"])
    assert [k for k in found if k.startswith("mass/")] == ["mass/c2"]


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (([Constraint()], [3, 2], 2), {}), (([Constraint()], [3], 1), {}), (([Constraint()], [3], 2), {"beta": 0.0}),
        (([Constraint()], [3], 2), {"rounds": 0}),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(args, options):
    with pytest.raises(InputError) as caught:
        FedFACTPost(*args, **options)
    accepted = "one number of groups for each constraint, two classes or more, positive beta"
    assert caught.value.args[1:] == (accepted, "correct what differs")


def test_rounds_that_are_used_up_leave_no_prices():
    # catches an unfinished search that passes for an answer
    with pytest.warns(RuntimeWarning, match="not found in 5 rounds"):
        state, _ = drive(FedFACTPost([Constraint(global_tol=0.01)], [3], 2, rounds=5), world(15))
    assert not state["over"]
    assert "prices" not in state


def test_a_client_that_sends_masses_and_never_answers_is_left_out_until_it_does():
    # catches a client whose rows divide the rates and whose decisions are not among them: prices then run away
    data = world(groups=2)
    names = sorted(data)
    algorithm = FedFACTPost([Constraint("demographic_parity", 0.02)], [2], 2)

    def gone(round_, name):
        return name != names[2] or round_ == 0

    state, _ = drive(algorithm, data, present=gone)
    assert state["over"]
    assert state["who"] == names[:2]
    alone, _ = drive(algorithm, {n: data[n] for n in names[:2]})
    np.testing.assert_allclose(state["prices"], alone["prices"], atol=1e-4)

    def late(round_, name):
        return name != names[2] or round_ == 0 or round_ >= 8

    state, _ = drive(algorithm, data, present=late)
    whole, _ = drive(algorithm, data)
    assert state["who"] == names
    np.testing.assert_allclose(state["prices"], whole["prices"], atol=1e-4)
    assert not np.allclose(whole["prices"], alone["prices"], atol=1e-2)  # the client matters
