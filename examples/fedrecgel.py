"""FedRecGEL by hand: train on devices, recommend, take in a new user, and see what one upload gives away.

One seed shows how to call it, not that it helps: `upright run fedrecgel --seeds 6` runs the controls beside it.
"""

import numpy as np

from upright.data.interactions import synthetic
from upright.data.sequences import leave_last
from upright.methods.fedrecgel import FedRec
from upright.metrics.ranking import evaluate_full
from upright.recommendation.federated import score_all
from upright.tasks.updates import row_scores

split = leave_last(synthetic(n_users=200, n_items=120, seed=0), seed=0)
model = FedRec("dot", rho_shared=0.05, rho_private=0.05, rounds=150, server_rate=0.03, dim=16).fit(split.train)
users = list(model.devices)
print("for", users[0], [item for item, _ in model.recommend(users[0], k=5)])

scores = score_all(model.state, model.algorithm.users(model.privates, users))
found = evaluate_full(lambda some: scores[some], split.valid.user, split.train.csr(), split.valid.csr())
print(f"validation NDCG@10: {found['ndcg@10'].mean():.3f}")

name = model.add_user(split.train.item_ids[:5])  # the shared block stays as it is
print("for", name, [item for item, _ in model.recommend(name, k=5)])

device = model.devices[users[0]]
reply, _ = model.algorithm.client(model.algorithm.message(model.state), {}, device)
score, rank, _ = row_scores(reply["values"])  # what a server can read without any training
guessed = reply["rows"][score > 0]
print(f"an upload of rank {rank}: {np.isin(guessed, device.items).mean():.0%} of the items it points at are the user's")
