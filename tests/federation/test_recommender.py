"""FedRec by hand, and rounds of FedRecGEL in which something goes wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from upright.contract import InputError
from upright.data.interactions import synthetic
from upright.data.sequences import joined
from upright.federation.recommender import FedRec
from upright.federation.rounds import drive

SETTINGS = {"rounds": 60, "fraction": 0.3, "dim": 8, "seed": 3}


def log(seed=1):
    split = synthetic(seed=seed)
    return joined(split.train, split.valid, split.test), np.array([int(t[-2]) for t in split.item_titles])


@pytest.fixture(scope="module")
def fitted():
    own, shelf = log()
    return FedRec(**SETTINGS).fit(own), own, shelf


def history(own, user):
    return [own.item_ids[i] for i in own.item[own.user == user]]


def test_a_fitted_model_recommends_from_the_users_own_shelf(fitted):
    # catches users or items that are confused on the way from ids to codes and back
    model, own, shelf = fitted
    code = {name: i for i, name in enumerate(own.item_ids)}
    hits, chance = [], []
    for user in range(own.n_users):
        met = {code[i] for i in history(own, user)}
        mine = np.bincount(shelf[[*met]]).argmax()
        found = [code[i] for i, _ in model.recommend(f"u{user}", k=5)]
        assert not met & set(found)
        hits.append(np.mean(shelf[found] == mine))
        chance.append(np.mean(shelf[[i for i in range(own.n_items) if i not in met]] == mine))
    assert np.mean(hits) > np.mean(chance) + 0.2
    scores = [score for _, score in model.recommend("u3", k=80, exclude_seen=False)]
    assert len(scores) == own.n_items
    assert scores == sorted(scores, reverse=True)


def test_a_new_user_is_served_like_one_who_was_there_and_changes_nothing_shared(fitted):
    # catches a shared block that moves with a new user, and a private vector that is not fitted
    model, own, shelf = fitted
    before, others = {k: v.copy() for k, v in model.shared().items()}, model.recommend("u5")
    name = model.add_user(history(own, 7) * 2)  # each item counts once
    assert len(model.devices[name].items) == len(set(history(own, 7)))
    mine = np.bincount(shelf[model.devices[name].items]).argmax()
    top = [model.item_ids.index(i) for i, _ in model.recommend(name, k=5)]
    assert np.mean(shelf[top] == mine) >= 0.6
    assert model.recommend("u5") == others
    for key, value in model.shared().items():
        np.testing.assert_array_equal(value, before[key])


def test_what_is_saved_serves_new_users_alike_and_knows_nobody(fitted, tmp_path):
    model, own, _ = fitted
    again = FedRec.load(model.save(tmp_path / "model"))
    name = "the new one"
    for one in (model, again):
        one.add_user(history(own, 9), name)
    assert again.recommend(name) == model.recommend(name)
    assert list(again.devices) == [name]
    blob = b"".join(f.read_bytes() for f in (tmp_path / "model").iterdir())
    assert not [user for user, own in model.privates.items() if own and own["user"].tobytes() in blob]


def test_a_file_with_a_row_twice_gives_the_devices_of_its_log(tmp_path):
    own, _ = log()
    file = tmp_path / "log.csv"
    rows = [f"{own.user_ids[u]},{own.item_ids[i]}" for u, i in zip(own.user, own.item, strict=True)]
    file.write_text("\n".join(["user,item", *rows, rows[0]]))
    one, other = (FedRec(**SETTINGS | {"rounds": 2}).fit(source) for source in (own, file))
    assert {u: {other.item_ids[i] for i in d.items} for u, d in other.devices.items()} == {
        u: {one.item_ids[i] for i in d.items} for u, d in one.devices.items()
    }


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: FedRec().recommend("u1"), "without data"),
        (lambda m: FedRec().add_user(["i1"]), "without data"),
        (lambda m: FedRec().save("nowhere"), "without data"),
        (lambda m: m.recommend("nobody"), "'nobody'"),
        (lambda m: m.recommend("u1", k=0), "k = 0"),
        (lambda m: m.add_user(["i1", "other"]), "'other'"),
        (lambda m: m.add_user([]), "no items"),
        (lambda m: m.add_user(["i1"], "u1"), "'u1'"),
        (lambda m: m.add_user(["i1"], steps=0), "steps = 0"),
        (lambda m: FedRec.load("nowhere"), "settings.json"),
        (lambda m: FedRec().start(["a", "a"]), "1 of them distinct"),
        (lambda m: FedRec(dim=4).start(m.item_ids, m.shared()), "shared.item"),
        (lambda m: FedRec(rho_shared=-0.1), "rho_shared"),
        (lambda m: FedRec(round=3), "'round'"),
        (lambda m: FedRec(fraction=0.001).fit(log()[0]), "fraction"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_name(fitted, call, words):
    with pytest.raises(InputError) as said:
        call(fitted[0])
    assert words in said.value.got


def test_a_seed_of_noise_is_not_passed_on(tmp_path):
    # who knows it can subtract the noise
    noisy = FedRec(clip=1.0, noise_multiplier=1.0, n_clients=100, seed=12345, noise_seed=6789).start(["a", "b"])
    for write in (noisy.save, noisy.export):
        for path in write(tmp_path / write.__name__).iterdir():
            assert b"noise_seed" not in path.read_bytes()
            assert b"6789" not in path.read_bytes()
    back = FedRec.load(tmp_path / "save")
    assert back.algorithm.config == noisy.algorithm.config.replace(noise_seed=None)


# -- rounds that go wrong -------------------------------------------------------------------------------------------


def started(**settings):
    own, _ = log()
    model = FedRec(**SETTINGS | {"dtype": "float64", "rounds": 3, "fraction": 1.0} | settings)
    model.start(own.item_ids)
    return model, {f"u{u}": model.device(f"u{u}", history(own, u)) for u in range(10)}


def test_a_client_that_vanishes_after_it_was_asked_is_missed_for_that_round_alone():
    # catches a mean over the asked, and memory that a client which did not answer has moved
    model, data = started()
    logs = []
    gone = {(2, "u4")}
    _, privates = drive(model.algorithm, data, present=lambda r, name: (r, name) not in gone,
                        on_round=lambda s, p: logs.append(s["log"][-1]))  # fmt: skip
    assert [(e["used"], e["absent_names"], e["settled"]) for e in logs] == [
        (10, [], True),
        (9, ["u4"], True),
        (10, [], True),
    ]
    assert [int(privates[name]["step"]) for name in ("u4", "u5")] == [2, 3]
    first, early = drive(model.algorithm, data, present=lambda r, name: name != "u4" or r == 1)
    few = {name: own for name, own in data.items() if name != "u4"}
    start = drive(FedRec(**model.settings | {"rounds": 1}).start(model.item_ids).algorithm, data)
    without, _ = drive(model.algorithm, few, resume=start)  # the other way to say that it is gone from round 2
    np.testing.assert_allclose(first["shared.item"], without["shared.item"], atol=1e-14)
    assert int(early["u4"]["step"]) == 1


def test_a_catalogue_grows_between_rounds_and_old_clients_go_on():
    # catches moments or memories that are lost, and new rows that are not those of a longer catalogue
    model, data = started()
    short = FedRec(**model.settings | {"rounds": 1}).start(model.item_ids)
    state, privates = drive(short.algorithm, data)
    longer = model.algorithm.grown(state, len(model.item_ids) + 5)
    fresh = FedRec(**model.settings).start([*model.item_ids, *"abcde"])
    np.testing.assert_array_equal(longer["shared.item"][-5:], fresh.state["shared.item"][-5:])
    newer = data | {"v": fresh.device("v", ["i1", "a", "e"])}
    final, memories = drive(model.algorithm, newer, resume=(longer, privates))
    assert final["shared.item"].shape == fresh.state["shared.item"].shape
    assert [int(memories[name]["step"]) for name in ("u1", "v")] == [3, 2]
    assert (np.abs(final["shared.item"][-5:] - longer["shared.item"][-5:]).max(1) > 0).any()


def test_fewer_replies_than_needed_repeat_the_round_and_end_with_the_names():
    model, data = started()
    logs = []
    with pytest.raises(InputError) as said:
        drive(model.algorithm, data, present=lambda r, name: r == 1 or name < "u3", repeats=2,
              on_round=lambda s, p: logs.append((s["log"][-1], s["shared.item"].copy())))  # fmt: skip
    assert [entry["settled"] for entry, _ in logs] == [True, False, False]
    np.testing.assert_array_equal(logs[2][1], logs[0][1])
    assert all(name in said.value.got for name in ("u3", "u9"))
    assert "absent: u3, u4, u5, u6, u7, u8, u9" in said.value.got


@pytest.mark.parametrize("noise", [{}, {"clip": 1.0, "noise_multiplier": 1.0, "n_clients": 10}])
def test_a_round_that_draws_nobody_is_a_round(noise):
    # catches a training that ends by chance after hours, and a round without the noise that its accountant counts
    model, data = started(fraction=0.1, poisson=True, rounds=12, noise_seed=1, **noise)
    counts, tables = [], [model.state["shared.item"]]

    def look(state, privates):
        counts.append(state["history"][-1]["clients"])
        tables.append(state["shared.item"])

    state, _ = drive(model.algorithm, data, on_round=look)
    assert state["round"] == 13
    assert 0 in counts
    assert max(counts) > 0
    assert np.isfinite(state["shared.item"]).all()
    moved = [np.abs(new - old).min() > 0 for old, new in itertools.pairwise(tables)]
    assert not noise or all(moved)
