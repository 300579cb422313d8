"""In-UCDS in a plain BPR loop: pull inactive users towards their dominant sets, compare both groups.

One seed shows how to call it, not that it helps: `upright run in_ucds --seeds 6` runs the controls beside it.
"""

import numpy as np
import torch
from torch.nn.functional import softplus

from upright.data.interactions import synthetic
from upright.methods.in_ucds import ConstrainedDominantSets, UserPullLoss
from upright.metrics.ranking import evaluate_full
from upright.models.recommenders import BPRMF, draw_negatives

split = synthetic(n_users=200, n_items=120, seed=0)
train, seen = split.train, split.train.csr()
busiest_first = np.argsort(-train.counts("user"), kind="stable")
pool, targets = busiest_first[:20], busiest_first[20:]
sets = ConstrainedDominantSets().fit(seen, targets, pool)


def mean_ndcg(lam: float) -> list[float]:
    model = BPRMF(train.n_users, train.n_items, dim=16, generator=torch.Generator().manual_seed(0))
    pull = UserPullLoss(sets.weights_, lam)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    rng = np.random.default_rng(0)
    for _ in range(20):
        negatives = draw_negatives(train.user, seen, train.n_items, rng)[:, 0]
        for rows in np.array_split(rng.permutation(len(train.user)), 10):
            u, i, j = (torch.from_numpy(x[rows]) for x in (train.user, train.item, negatives))
            users, items = model.tables()
            margin = model.score(users[u], items[i]) - model.score(users[u], items[j])
            loss = softplus(-margin).mean() + pull(users, u)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    users, items = (table.detach() for table in model.tables())
    found = evaluate_full(lambda some: (users[some] @ items.T).numpy(), range(200), seen, split.valid.csr())
    return [float(np.nanmean(found["ndcg@10"][group])) for group in (pool, targets)]


for lam in (0.0, 0.03):
    print("lam = {:.2f}: validation NDCG@10 advantaged {:.3f}, disadvantaged {:.3f}".format(lam, *mean_ndcg(lam)))
