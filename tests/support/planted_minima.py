"""Two minima of equal mean loss over clients, one sharp and elsewhere at each client, one flat and shared."""

from __future__ import annotations

import numpy as np
import torch

from upright.recommendation import federated
from upright.recommendation.devices import Device
from upright.recommendation.federated import FedRecGEL
from upright.recommendation.settings import FedRecConfig

CLIENTS, SEEDS, SHARP, FLAT = 12, range(6), 40.0, 1.0


def play(algorithm, data, *, rounds=None, state=None, privates=None, present=None):
    """Run rounds as a driver does: ask, answer, object, fold in order of names."""
    state, privates = state or algorithm.start(), {name: {} for name in data} | (privates or {})
    last = algorithm.config.rounds if rounds is None else state["round"] + rounds - 1
    while state["round"] <= last:
        asked = [n for n in algorithm.sample(state, list(data)) if present is None or present(state["round"], n)]
        answers = algorithm.clients(algorithm.message(state), privates, {name: data[name] for name in asked})
        total = algorithm.begin(state)
        for name in sorted(answers):
            privates[name] = answers[name][1]
            if not algorithm.objection(state, name, answers[name][0]):
                total = algorithm.add(total, name, answers[name][0])
        state = algorithm.finish(state, total)
    return state, privates


def landscape(offset: dict[str, float]):
    """Return the loss of clients, told apart by a private vector that hardly moves.

    ``L_c = k(y) (x - offset_c)^2 / 2 + barrier(y) - k(y) Var(offset) / 2``, so that the mean loss at the best x is
    ``barrier(y)``, 0 both at y = 0, where k is large, and at y = 1, where it is small.
    """
    values = torch.tensor(list(offset.values()))

    def loss(rows, user, net, a, b):
        x, y = rows[:, 0, 0], rows[:, 0, 1]
        k = FLAT + (SHARP - FLAT) * torch.sigmoid(6 * (0.5 - y))
        barrier = 4.8 * y**2 * (1 - y) ** 2
        rest = rows[:, 0, 2:].square().sum(1)
        own = 10 * user[:, 0].detach()
        return k * (x - own) ** 2 / 2 + barrier - k * values.var(correction=0) / 2 + rest + 0.0 * user.sum(1)

    return loss


def ending(monkeypatch, seed, **settings):
    """Return where training ends, y, and the mean rise of the loss at the radius."""
    config = FedRecConfig(
        n_items=1, dim=16, dtype="float64", seed=seed, fraction=0.5, rounds=100, server_rate=0.03, client_rate=1e-12,
        rho_shared=0.3, rho_private=0.0, **settings,
    )  # fmt: skip
    algorithm = FedRecGEL(config)
    data = {f"c{i:02d}": Device(f"c{i:02d}", np.zeros(1, dtype=np.int64)) for i in range(CLIENTS)}
    users = algorithm.users({}, sorted(data))
    monkeypatch.setattr(federated, "client_loss", landscape(dict(zip(data, 10 * users[:, 0], strict=True))))
    state, privates = play(algorithm, data)
    rise = algorithm.sharpness(algorithm.message(state), privates, data)[:, 1:]
    return float(state["shared.item"][0, 1]), float(rise[:, 0].mean())
