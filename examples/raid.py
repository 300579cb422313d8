"""RAID in a loop of your own: a loss for any table of user vectors, and attackers on users held out from it."""

import numpy as np
import torch

from upright.methods.raid import BarycenterDefense
from upright.metrics.attacks import attack
from upright.tasks.embeddings import judge_attacks

rng = np.random.default_rng(0)
users, items, dim = 600, 200, 16
gender = np.where(rng.random(users) < 0.35, "F", "M")
taste = rng.normal(size=(users, dim)) + 0.9 * (gender == "F")[:, None] * rng.normal(size=dim)
likes = taste @ rng.normal(size=(dim, items)) > 6.0  # what each user clicked
u, i = (torch.from_numpy(a) for a in np.nonzero(likes))
held_out = rng.random(users) < 0.5  # nothing is fitted on them; they alone are attacked


def train(alpha: float) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(0.1 * torch.randn(users, dim, generator=generator))
    item = torch.nn.Parameter(0.1 * torch.randn(items, dim, generator=generator))
    optimiser = torch.optim.Adam([table, item], lr=0.02)
    defence = BarycenterDefense(gender, fit=~held_out, method="sliced", refresh_every=10)
    for _ in range(150):
        j = torch.randint(items, i.shape, generator=generator)
        margin = (table[u] * (item[i] - item[j])).sum(1)
        loss = torch.nn.functional.softplus(-margin).mean() + 0.001 * table[u].square().sum(1).mean()
        optimiser.zero_grad()
        (loss + alpha * defence.step(table, u)).backward()
        optimiser.step()
    return table.detach().numpy()


for alpha in (0.0, 1.0):
    found = attack({"users": train(alpha)}, gender, attackers=("logistic", "gbdt"), held_out=held_out)
    verdict = judge_attacks(found, range(users), gender, "gender").evidence["verdict"]
    print(f"alpha {alpha}: {verdict['word']}. {verdict['sentence']}")
