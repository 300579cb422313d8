"""Sampling, sparse replies, the fold, the bounded log and memory in rows, on a small table that devices share."""

from __future__ import annotations

import gc
import io
import weakref

import numpy as np
import pytest
import torch

from shared_table import ROWS, WIDTH, Device, Kept, Table, devices
from upright.contract import InputError
from upright.federation.rounds import Free, Rows, checked, drive, from_tensors, rounds, sampled, settle, to_tensors


def logged(algorithm, data, **options):
    """Drive an algorithm, and keep each entry of the log."""
    log = []
    state, privates = drive(algorithm, data, on_round=lambda s, p: log.append(s["log"][-1]), **options)
    return state, privates, log


def same(left, right):
    assert set(left) == set(right)
    for name, own in left.items():
        assert set(own) == set(right[name])
        for key, value in own.items():
            np.testing.assert_array_equal(value, right[name][key])


# -- who is asked ----------------------------------------------------------------------------------------------------


def test_only_those_who_are_drawn_are_asked_and_counted():
    # catches a share of everybody, absence of clients that were never asked, and presence asked of all
    data, algorithm, seen = devices(40), Table(3, 0.3), []

    def present(turn, name):
        seen.append((turn, name))
        return name != "u007"

    _, privates, log = logged(algorithm, data, present=present, least=0.9)
    drawn = [algorithm.sample({"round": r}, sorted(data)) for r in range(3)]
    assert sorted(seen) == sorted((r, n) for r in range(3) for n in drawn[r])
    away = [["u007"] if "u007" in names else [] for names in drawn]
    assert any(away)
    assert [e["asked"] for e in log] == [len(names) for names in drawn]
    assert [e["absent_names"] for e in log] == away
    for name in data:
        times = sum(name in names for names in drawn) if name != "u007" else 0
        assert float(privates[name].get("step", 0.0)) == times


def test_the_order_in_which_clients_are_given_changes_nothing():
    # catches a sample that is drawn from the order of names, and sums in the order of arrival
    data = devices(30)
    want, memories = drive(Table(), data)
    got, again = drive(Table(), dict(reversed(data.items())))
    np.testing.assert_array_equal(got["table"], want["table"])
    same(memories, again)


def test_a_round_that_asks_nobody_is_settled_without_replies():
    # catches a sample of Poisson that is empty for once and ends the training, or asks the same nobody for ever
    state, privates, log = logged(Table(3, 0.0), devices(5))
    assert [(e["round"], e["settled"], e["asked"], e["used"]) for e in log] == [(r, True, 0, 0) for r in range(3)]
    np.testing.assert_array_equal(state["table"], np.zeros((ROWS, WIDTH)))
    assert not any(privates.values())
    assert Kept(Table(3, 0.0)).server(Table().start(), {})["round"] == 1


def test_a_sample_of_strangers_is_refused():
    # catches a KeyError far from its cause
    class Wrong(Table):
        def sample(self, state, names):
            return ["nobody", *names]

    with pytest.raises(ValueError, match="clients that are not there"):
        drive(Wrong(), devices(2))
    assert sampled(Kept(Table(1, 1.0)), {"round": 0}, ["b", "a"]) == ["a", "b"]


# -- sparse replies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_the_first_dimension_of_a_free_entry_may_have_any_length(rows):
    value = np.zeros((rows, 4), np.float32)
    assert checked({"v": value}, {"v": Free("float32", (None, 4))})["v"] is value


@pytest.mark.parametrize(
    "value",
    [np.zeros((3, 5), np.float32), np.zeros((3, 4)), np.zeros(4, np.float32), np.zeros((3, 4, 1), np.float32),
     np.array(0, np.float32)],
)  # fmt: skip
def test_what_is_not_free_is_checked(value):
    # catches a template that is no template once one dimension is free
    with pytest.raises(InputError, match=r"v: float(32|64) of shape"):
        checked({"v": value}, {"v": Free("float32", (None, 4))})


def test_an_entry_without_a_free_dimension_is_as_a_plain_array():
    assert checked({"v": np.zeros(2)}, {"v": Free("float64", (2,))})
    with pytest.raises(InputError):
        checked({"v": np.zeros(3)}, {"v": Free("float64", (2,))})
    with pytest.raises(ValueError, match="only the first dimension"):
        Free("float64", (2, None))


BROKEN = {
    "a number that is no number": (lambda r: r | {"values": r["values"] * np.nan}, "not finite"),
    "1e30": (lambda r: r | {"values": r["values"] + 1e30}, "too large"),
    "a row outside": (lambda r: r | {"rows": r["rows"] + ROWS}, "rows that are not in the table"),
    "a row twice": (lambda r: {**r, "rows": np.repeat(r["rows"], 2), "values": np.repeat(r["values"], 2, axis=0)},
                    "rows that are not in the table"),
    "another width": (lambda r: r | {"values": r["values"][:, :2]}, "values: float64 of shape"),
    "another dtype": (lambda r: r | {"values": r["values"].astype(np.float32)}, "values: float32 of shape"),
    "fewer rows than values": (lambda r: r | {"rows": r["rows"][:-1]}, "rows that are not in the table"),
    "nothing": (lambda r: {}, "a reply without"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_reply_is_named_and_the_others_go_on_without_it(kind):
    # catches the one device that spoils the sum of all
    change, reason = BROKEN[kind]

    class Bad(Table):
        def client(self, message, private, data):
            reply, private = super().client(message, private, data)
            return (change(reply) if data.name == "u002" else reply), private

    data = devices(6)
    state, privates, log = logged(Bad(3, 1.0), data)
    want, _ = drive(Table(3, 1.0), data, present=lambda turn, name: name != "u002")
    np.testing.assert_array_equal(state["table"], want["table"])
    assert [list(e["quarantined_names"]) for e in log] == [["u002"]] * 3
    assert all(e["quarantined"] == 1 and e["absent"] == 0 and e["used"] == 5 for e in log)
    assert log[0]["quarantined_names"]["u002"].startswith(reason) or reason in log[0]["quarantined_names"]["u002"]
    assert float(privates["u002"]["step"]) == 3  # it cannot know that its reply was not used


# -- the fold --------------------------------------------------------------------------------------------------------


class Together(Table):
    """All clients of a chunk at a time; remembers which they were."""

    def __init__(self, *args):
        super().__init__(*args)
        self.calls = []

    def clients(self, message, privates, datas):
        assert list(privates) == list(datas)
        self.calls.append(list(datas))
        return {name: self.client(message, privates[name], datas[name]) for name in reversed(datas)}


@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_folded_in_chunks_of_any_size_or_not_at_all_the_end_is_the_same(chunk):
    # catches an order of sums that is that of a chunk, and a client that is lost between two
    data, algorithm = devices(30), Together(3, 0.7)
    want, memories = drive(Kept(Table(3, 0.7)), data)
    got, again = drive(algorithm, data, chunk=chunk)
    np.testing.assert_array_equal(got["table"], want["table"])
    same(memories, again)
    drawn = [algorithm.sample({"round": r}, sorted(data)) for r in range(3)]
    assert [n for names in algorithm.calls for n in names] == [n for names in drawn for n in names]
    assert max(map(len, algorithm.calls)) == min(chunk, max(map(len, drawn)))


def test_replies_are_dropped_once_they_are_added():
    # catches a fold that holds all replies of the round
    alive, most = [], []

    class Counted(Together):
        def client(self, message, private, data):
            reply, private = super().client(message, private, data)
            alive.append(weakref.ref(reply["values"]))
            return reply, private

        def clients(self, message, privates, datas):
            gc.collect()
            most.append(sum(one() is not None for one in alive))
            return super().clients(message, privates, datas)

    drive(Counted(1, 1.0), devices(30), chunk=5)
    assert len(most) == 6
    assert max(most) <= 1  # the last one is let go when the next is taken


def test_a_total_of_too_few_replies_is_dropped():
    # catches replies of a failed attempt that are added to those of the next
    data, tried = devices(6), []

    def present(turn, name):
        tried.append(name)
        return len(tried) > 6 or name == "u000"

    state, _, log = logged(Table(1, 1.0), data, present=present)
    assert [e["settled"] for e in log] == [False, True]
    # u000 answered twice and has moved on once more than its reply was used
    table = Table(1, 1.0)
    first = table.client(table.message(table.start()), {}, data["u000"])[1]
    want, _ = drive(table, data, resume=(table.start(), {"u000": first}))
    np.testing.assert_array_equal(state["table"], want["table"])


# -- the log ---------------------------------------------------------------------------------------------------------


def test_the_log_of_a_state_does_not_grow():
    # catches a checkpoint that gets larger with each round, and the names of thousands in each entry
    data, sizes = devices(50), []
    late = ("u030", "u031")
    turns = iter(range(10**6))
    order = {}

    def present(turn, name):
        attempt = order.setdefault((turn, next(turns) // 50), len(order))
        return attempt % 3 == 2 or name in late

    log = []
    drive(Table(4, 1.0), data, present=present,
          on_round=lambda s, p: (sizes.append(len(s["log"])), log.append(s["log"][-1])))  # fmt: skip
    assert sizes == [1, 2, 1] + [2, 3, 1] * 3
    assert [e["settled"] for e in log] == [False, False, True] * 4
    assert log[0]["absent"] == 48
    assert log[0]["absent_names"] == [n for n in sorted(data) if n not in late][:20]
    bad = settle(Table(), Table().start(), dict.fromkeys(data, "a stranger") | {"u000": _reply()}, ["u000"])
    assert bad["log"][0]["quarantined"] == 49
    assert list(bad["log"][0]["quarantined_names"]) == sorted(data)[1:21]


def _reply():
    table = Table()
    return table.client(table.message(table.start()), {}, devices(1)["u000"])[0]


def test_an_end_for_want_of_replies_names_who_was_absent():
    # catches ten thousand names in one message, and an error without any
    with pytest.raises(InputError) as caught:
        drive(Table(2, 1.0), devices(30), present=lambda turn, name: name < "u005", repeats=1)
    assert "round 0: 5 of 30 clients could be used after 2 attempts; absent: u005, u006" in caught.value.got
    assert "u024, and 5 more; quarantined: nobody" in caught.value.got
    assert caught.value.accepted == "at least 15 replies"


# -- memory in rows --------------------------------------------------------------------------------------------------


def test_rows_are_a_mapping_of_memories_and_never_change():
    rows = Rows(["a", "b", "c"], {"x": np.zeros((3, 2)), "k": np.zeros(3, np.int64)})
    assert (len(rows), list(rows), rows["b"], "d" in rows) == (3, ["a", "b", "c"], {}, False)
    new = rows.updated({"b": {"x": np.array([1.0, 2.0]), "k": np.array(7)}})
    assert rows["b"] == {}
    np.testing.assert_array_equal(new["b"]["x"], [1.0, 2.0])
    assert (new["b"]["k"].shape, int(new["b"]["k"]), new["a"]) == ((), 7, {})
    assert new.updated({"b": {}})["b"] == {}
    np.testing.assert_array_equal(new.updated({})["b"]["x"], [1.0, 2.0])


@pytest.mark.parametrize(
    "memory",
    [{"x": np.zeros(2)}, {"x": np.zeros(2), "k": np.array(0), "more": np.zeros(1)},
     {"x": np.zeros(3), "k": np.array(0)}, {"x": np.zeros(2, np.float32), "k": np.array(0)},
     {"x": np.zeros(2), "k": np.zeros(1, np.int64)}],
)  # fmt: skip
def test_a_memory_that_does_not_fit_its_row_is_refused(memory):
    # catches numbers that change their type or are broadcast on the way into a row
    with pytest.raises(ValueError, match="memory"):
        Rows(["a"], {"x": np.zeros((1, 2)), "k": np.zeros(1, np.int64)}).updated({"a": memory})


@pytest.mark.parametrize(("names", "length"), [(["a", "a"], 2), (["a", "b"], 3)])
def test_rows_need_one_row_a_name(names, length):
    with pytest.raises(ValueError, match="each name once"):
        Rows(names, {"x": np.zeros(length)})


def test_a_checkpoint_of_rows_is_a_few_tensors_whatever_the_number_of_clients():
    # catches a tensor a client, which took a minute to read at 100,000 of them
    names = ["two\nlines", "ü", "a/b", *(f"u{i}" for i in range(500))]
    rows = Rows(names, {"x": np.random.default_rng(0).normal(size=(503, 2)), "k": np.arange(503)})
    rows = rows.updated({n: {"x": np.ones(2), "k": np.array(3)} for n in names[:4]})
    buffer, tensors = io.BytesIO(), []
    tree = to_tensors([{"round": 1}, rows])
    _count(tree, tensors)
    assert len(tensors) == 4
    torch.save(tree, buffer)
    buffer.seek(0)
    _, back = from_tensors(torch.load(buffer, weights_only=True))
    assert isinstance(back, Rows)
    assert list(back) == names
    same(rows, back)


def _count(tree, found):
    if isinstance(tree, torch.Tensor):
        found.append(tree)
    elif isinstance(tree, dict | list):
        for one in tree.values() if isinstance(tree, dict) else tree:
            _count(one, found)


def test_killed_between_any_two_rounds_the_end_is_the_same():
    # catches state that lives outside of what is saved, and memory that is begun anew
    data, kept = devices(20), []
    want, memories = drive(Table(5, 0.4), data, on_round=lambda s, p: kept.append(to_tensors((s, p))))
    assert isinstance(memories, Rows)
    for saved in kept[:-1]:
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        buffer.seek(0)
        got, again = drive(Table(5, 0.4), data, resume=from_tensors(torch.load(buffer, weights_only=True)))
        np.testing.assert_array_equal(got["table"], want["table"])
        assert got["log"] == want["log"]
        same(memories, again)


@pytest.mark.parametrize("as_rows", [True, False])
def test_clients_may_come_and_go_between_two_runs(as_rows):
    # catches a memory that is read from another client's row once names have moved
    data = devices(8)
    state, privates = drive(Table(2, 1.0), {n: data[n] for n in data if n != "u001"})
    resume = (state, privates if as_rows else dict(privates))
    more = {n: one for n, one in data.items() if n != "u004"}
    state, again = drive(Table(3, 1.0), more, resume=resume)
    assert {n: float(own["step"]) for n, own in again.items()} == {
        n: {"u001": 1.0, "u004": 2.0}.get(n, 3.0) for n in data
    }
    np.testing.assert_array_equal(again["u004"]["user"], privates["u004"]["user"])


def test_a_device_without_rows_is_no_error():
    data = devices(4) | {"u009": Device("u009", np.empty(0, np.int64))}

    class Still(Table):
        def client(self, message, private, data):
            if len(data.rows):
                return super().client(message, private, data)
            return {"rows": data.rows, "values": np.zeros((0, WIDTH)), "count": np.array(0.0)}, {}

    *_, last = rounds(Still(2, 1.0), data)
    assert last[1]["u009"] == {}
    assert last[0]["log"][0]["used"] == 5
