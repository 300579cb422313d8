"""The driver of rounds on an algorithm small enough to be worked out by hand."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from upright.contract import InputError
from upright.federation.rounds import checked, drive, from_tensors, settle, to_tensors


class Mean:
    """Moves a number half of the way to the weighted mean of the clients' numbers; clients count their rounds."""

    def __init__(self, rounds=3):
        self.rounds = rounds

    def start(self):
        return {"round": 0, "at": np.zeros(2)}

    def message(self, state):
        return {"at": state["at"]}

    def template(self, state, name):
        return {"step": np.zeros(2), "weight": np.zeros(1)}

    def objection(self, state, name, reply):
        return "" if reply["weight"][0] >= 0 else "a weight below 0"

    def client(self, message, private, data):
        count = private.get("count", np.zeros(1)) + 1
        return {"step": 0.5 * (data - message["at"]), "weight": np.array([float(data[1])])}, {"count": count}

    def server(self, state, replies):
        total = sum(r["weight"][0] for r in replies.values())
        step = sum(r["weight"][0] * r["step"] for r in replies.values()) / total
        return {**state, "round": state["round"] + 1, "at": state["at"] + step}

    def done(self, state):
        return state["round"] >= self.rounds


class Bad(Mean):
    """One client's reply is broken."""

    def __init__(self, change, who=3.0, rounds=3):
        super().__init__(rounds)
        self.change, self.who = change, who

    def client(self, message, private, data):
        reply, private = super().client(message, private, data)
        return (self.change(reply) if data[1] == self.who else reply), private


DATA = {"a": np.array([1.0, 1.0]), "b": np.array([5.0, 2.0]), "c": np.array([-4.0, 3.0])}


def halfway(names, rounds):
    at = np.zeros(2)
    for _ in range(rounds):
        total = sum(DATA[n][1] for n in names)
        at = at + 0.5 * (sum(DATA[n][1] * DATA[n] for n in names) / total - at)
    return at


def logged(algorithm, data, **options):
    """Drive an algorithm, and keep each entry of the log."""
    log = []
    state, privates = drive(algorithm, data, on_round=lambda s, p: log.append(s["log"][-1]), **options)
    return state, privates, log


def test_rounds_are_averaged_over_the_weights_that_arrived():
    # catches a sum of weights over everybody while a client is absent
    state, privates = drive(Mean(), DATA)
    np.testing.assert_allclose(state["at"], halfway("abc", 3), atol=1e-15)
    assert {n: p["count"][0] for n, p in privates.items()} == {"a": 3, "b": 3, "c": 3}
    state, privates, log = logged(Mean(), DATA, present=lambda turn, name: name != "b")
    np.testing.assert_allclose(state["at"], halfway("ac", 3), atol=1e-15)
    assert [(e["absent"], e["absent_names"]) for e in log] == [(1, ["b"])] * 3
    assert privates["b"] == {}


def test_the_order_of_clients_does_not_matter():
    # catches sums in the order of a dictionary
    want = drive(Mean(), DATA)[0]["at"]
    for order in itertools.permutations(DATA):
        got = drive(Mean(), {name: DATA[name] for name in order})[0]["at"]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r | {"step": np.array([np.nan, 0.0])}, "step with 1 numbers that are not finite"),
        (lambda r: r | {"step": np.array([np.inf, np.inf])}, "step with 2 numbers that are not finite"),
        (lambda r: r | {"step": np.zeros(3)}, "step: float64 of shape (3,)"),
        (lambda r: r | {"step": np.zeros(2, np.float32)}, "step: float32 of shape (2,)"),
        (lambda r: r | {"step": np.array(["x", "y"])}, "step of <U1"),
        (lambda r: r | {"step": [0.0, 0.0]}, "step of list"),
        (lambda r: {"step": r["step"]}, "a reply without ['weight'] and with [] besides"),
        (lambda r: r | {"more": np.zeros(1)}, "a reply without [] and with ['more'] besides"),
        (lambda r: r | {"weight": np.array([-1.0])}, "a weight below 0"),
    ],
)
def test_a_broken_reply_is_quarantined_named_and_never_averaged(change, reason):
    # catches the one client that turns every average into NaN
    state, privates, log = logged(Bad(change), DATA)
    np.testing.assert_allclose(state["at"], halfway("ab", 3), atol=1e-15)
    assert [(e["quarantined"], e["quarantined_names"]) for e in log] == [(1, {"c": reason})] * 3
    assert [e["used"] for e in log] == [2] * 3
    assert privates["c"]["count"][0] == 3  # it answered, and cannot know that its reply was not used


def test_a_round_with_too_few_replies_is_asked_again():
    # catches an average over whoever happens to be there
    asked = []

    def present(turn, name):
        asked.append((turn, name))
        return name == "a" or len(asked) > 7  # attempts 1 and 2 of round 0: one client of three

    state, _, log = logged(Mean(), DATA, present=present)
    found = [(e["round"], e["settled"], e["absent_names"]) for e in log]
    assert found == [(0, False, ["b", "c"]), (0, False, ["b", "c"]), (0, True, []), (1, True, []), (2, True, [])]
    np.testing.assert_allclose(state["at"], halfway("abc", 3), atol=1e-15)


def test_a_round_that_cannot_be_settled_ends_in_three_parts_with_names():
    # catches an endless loop, and an error that does not say who is missing
    seen = []
    broken = Bad(lambda r: r | {"step": np.full(2, np.nan)})
    with pytest.raises(InputError) as caught:
        drive(broken, DATA, present=lambda t, name: name != "b", repeats=2, on_round=lambda s, p: seen.append(s),
              least=0.6)  # fmt: skip
    assert len(seen) == 2
    assert caught.value.got == (
        "round 0: 1 of 3 clients could be used after 3 attempts; absent: b; "
        "quarantined: c (step with 2 numbers that are not finite)"
    )
    assert caught.value.accepted == "at least 2 replies"
    assert "least" in caught.value.todo


def test_attempts_are_counted_for_each_round_anew():
    # catches a counter that runs over the whole training
    attempts = itertools.count()
    turns = []

    def present(turn, name):
        if name == "a":
            turns.append(next(attempts))
        return turns[-1] % 2 == 1  # every round fails once

    *_, log = logged(Mean(6), DATA, present=present, repeats=1)
    assert [e["settled"] for e in log] == [False, True] * 6


def test_resumed_from_any_round_the_end_is_the_same():
    # catches state that lives outside of what is saved
    kept = []
    want, memories = drive(Mean(5), DATA, on_round=lambda s, p: kept.append((s, p)))
    for state, privates in kept[:-1]:
        buffer = io.BytesIO()
        torch.save(to_tensors({"state": state, "privates": privates}), buffer)
        buffer.seek(0)
        back = from_tensors(torch.load(buffer, weights_only=True))
        got, again = drive(Mean(5), DATA, resume=(back["state"], back["privates"]))
        np.testing.assert_array_equal(got["at"], want["at"])
        assert got["log"] == want["log"]
        assert again == memories


def test_states_are_not_changed_in_place():
    # catches a checkpoint that moves while it is written
    kept = []
    drive(Mean(3), DATA, on_round=lambda s, p: kept.append((s["at"], s["at"].copy(), s["log"], str(s["log"]))))
    for own, copy, log, text in kept:
        np.testing.assert_array_equal(own, copy)
        assert str(log) == text


@pytest.mark.parametrize(
    ("data", "settings"),
    [({}, {}), (DATA, {"least": 0.0}), (DATA, {"least": 1.5}), (DATA, {"repeats": -1}), (DATA, {"chunk": 0})],
)
def test_settings_outside_their_range_are_refused(data, settings):
    # catches a driver that averages nothing
    with pytest.raises(InputError, match="clients, least ="):
        drive(Mean(), data, **settings)


def test_without_a_template_numbers_are_checked_all_the_same():
    # catches a check that is skipped for algorithms of others
    assert list(checked({"b": np.ones(1), "a": np.zeros(1, int)})) == ["a", "b"]
    with pytest.raises(InputError, match="not finite"):
        checked({"b": np.array([np.nan])})


def test_replies_refused_before_they_arrive_are_named_too():
    # catches a refusal of the transport that looks like an absence
    replies = {n: Mean().client({"at": np.zeros(2)}, {}, DATA[n])[0] for n in "abc"}
    state = settle(Mean(), Mean().start(), replies | {"c": "a stranger"}, list(DATA))
    assert state["log"][-1]["quarantined_names"] == {"c": "a stranger"}
    assert state["log"][-1]["absent"] == 0
    np.testing.assert_allclose(state["at"], halfway("ab", 1), atol=1e-15)


def test_the_wing_can_be_imported_without_flower():
    # catches an import of an optional package at the top
    code = "import sys, upright.federation, upright.federation.rounds; sys.exit('flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
