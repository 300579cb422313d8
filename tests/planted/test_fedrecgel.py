"""Planted defects of FedRecGEL: each check passes on the real code and is red with the defect."""

from __future__ import annotations

import numpy as np

from planted_minima import play
from upright.contract import stream
from upright.recommendation import federated
from upright.recommendation.devices import Device
from upright.recommendation.federated import FedRecGEL, score_all
from upright.recommendation.settings import FedRecConfig

ITEMS = 30


def devices(sizes=(9, 4, 14, 6)):
    rng = np.random.default_rng(0)
    return {f"u{i}": Device(f"u{i}", np.sort(rng.choice(ITEMS, n, replace=False))) for i, n in enumerate(sizes)}


def algorithm(**settings):
    own = {"dim": 4, "dtype": "float64", "rho_shared": 0.5, "rho_private": 0.5, "fraction": 1.0}
    return FedRecGEL(FedRecConfig(n_items=ITEMS, **(own | settings)))


def state_of(one):
    state = one.start()
    state["shared.item"] = np.random.default_rng(1).normal(size=state["shared.item"].shape)
    return state


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# -- checks ---------------------------------------------------------------------------------------------------------


def an_upload_is_the_gradient_at_the_perturbed_table():
    # the closed form of a dot product on dense tables: norms of whole rows, the vector where it was
    one, data = algorithm(), devices()
    state = state_of(one)
    table = state["shared.item"]
    found = one.clients(one.message(state), {name: {} for name in data}, data)
    for name, device in data.items():
        rng = np.random.default_rng(stream(0, "client", name, 1))
        _, item, label, weight = federated.draw_samples([device.items], [rng], ITEMS, 4, 128)
        user = one.users({}, [name])[0]

        def gradient(s, item=item, label=label, weight=weight, user=user):
            out = np.zeros_like(s)
            np.add.at(out, item, ((sigmoid(s[item] @ user) - label) * weight)[:, None] * user)
            return out

        g = gradient(table)
        wanted = gradient(table + 0.5 * g / np.linalg.norm(g))
        sent = np.zeros_like(table)
        np.add.at(sent, found[name][0]["rows"], found[name][0]["values"])
        assert np.abs(sent - wanted).max() < 1e-12


def a_private_step_is_that_of_the_clients_own_count():
    # Adam's first step has the length of its rate in each coordinate, whenever a client takes it
    one, data = algorithm(rounds=6), devices()
    state, privates = play(one, data, rounds=5, present=lambda r, name: name != "u0")
    before = one.users(privates, ["u0"])[0]
    _, privates = play(one, data, rounds=1, state=state, privates=privates)
    assert int(privates["u0"]["step"]) == 1
    assert np.allclose(np.abs(privates["u0"]["user"] - before), 0.1, atol=1e-4)


def the_mean_is_over_those_that_arrived():
    one, data = algorithm(), devices()
    state = state_of(one)
    here = ("u1", "u2")
    after, _ = play(one, data, rounds=1, state=state, present=lambda r, name: name in here)
    mean = np.zeros_like(state["shared.item"])
    for reply, _ in one.clients(one.message(state), {key: {} for key in here}, {k: data[k] for k in here}).values():
        mean[reply["rows"]] += reply["values"] / 2
    assert np.allclose(after["m.item"], 0.1 * mean, atol=1e-14)


def held_out_items_of_noise_are_not_found_by_a_client_alone():
    rng, hits = np.random.default_rng(2), []
    for name in (f"n{i}" for i in range(12)):
        items = rng.choice(ITEMS, 9, replace=False)
        HELD_OUT[name] = items[0]
        one = algorithm(rounds=40, rho_shared=0.0, rho_private=0.0, server_rate=0.05)
        device = Device(name, np.sort(items[1:]))
        state, privates = play(one, {name: device})
        score = score_all(state, one.users(privates, [name]))[0]
        score[device.items] = -np.inf
        hits.append(score.argmax() == items[0])
    assert np.mean(hits) < 0.5  # 1 in 22 by chance


def who_is_asked_is_a_matter_of_names():
    one, names = algorithm(fraction=0.3), [f"u{i}" for i in range(40)]
    assert one.sample({"round": 3}, names) == one.sample({"round": 3}, names[::-1])


HELD_OUT: dict[str, int] = {}


# -- defects --------------------------------------------------------------------------------------------------------


def norms_before_duplicates_are_merged(patch):
    def apart(owner, item, label, weight, n_items):
        order = np.lexsort((item, owner))
        return owner[order], item[order], (weight * label)[order], weight[order]

    patch.setattr(federated, "merge", apart)


def private_block_moved_in_the_shared_pass(patch):
    inner = federated.gradients

    def both(blocks, a, b, by):
        if "user" not in by:
            _, g = inner(blocks, a, b, ["user"])
            blocks = {**blocks, "user": blocks["user"] + federated.ascent(g, 0.5)["user"]}
        return inner(blocks, a, b, by)

    patch.setattr(federated, "gradients", both)


def one_adam_counter_for_all(patch):
    inner = federated.adam
    patch.setattr(federated, "adam", lambda *a: inner(*a[:4], np.max(a[4]) if np.ndim(a[4]) else a[4], a[5]))


def mean_over_the_asked(patch):
    inner = FedRecGEL.finish
    patch.setattr(FedRecGEL, "finish", lambda self, state, total: inner(self, state, total | {"clients": 4}))


def negatives_that_avoid_the_held_out_item(patch):
    inner, names = federated.draw_samples, []

    def clients(self, message, privates, datas, own=FedRecGEL.clients):
        names[:] = sorted(datas)
        return own(self, message, privates, datas)

    def avoiding(*given):
        owner, item, label, weight = inner(*given)
        there = item != np.array([HELD_OUT[name] for name in names])[owner]
        return owner[there], item[there], label[there], weight[there]

    patch.setattr(FedRecGEL, "clients", clients)
    patch.setattr(federated, "draw_samples", avoiding)


def sampling_by_place(patch):
    def by_place(self, state, names):
        rng = np.random.default_rng(stream(self.config.seed, "sample", state["round"]))
        return sorted(rng.choice(names, self.config.count_asked(len(names)), replace=False))

    patch.setattr(FedRecGEL, "sample", by_place)


PAIRS = [
    (an_upload_is_the_gradient_at_the_perturbed_table, norms_before_duplicates_are_merged),
    (an_upload_is_the_gradient_at_the_perturbed_table, private_block_moved_in_the_shared_pass),
    (a_private_step_is_that_of_the_clients_own_count, one_adam_counter_for_all),
    (the_mean_is_over_those_that_arrived, mean_over_the_asked),
    (held_out_items_of_noise_are_not_found_by_a_client_alone, negatives_that_avoid_the_held_out_item),
    (who_is_asked_is_a_matter_of_names, sampling_by_place),
]


def test_defect_turns_its_check_red(pair, turns_red):
    turns_red(*pair)
