"""EISAM in a plain loop: two passes a step, no closure, and who gets what among head and tail items.

One seed shows how to call it, not that it helps: `upright run eisam --seeds 6` runs the controls beside it.
"""

import numpy as np
import torch

from upright.data.interactions import synthetic
from upright.data.sequences import last_histories, leave_last, windows
from upright.maths.sharpness import head_items
from upright.methods.eisam import EISAM, check_sharpness
from upright.metrics.ranking import evaluate_full
from upright.models.sequential import SASRec

torch.manual_seed(0)
split = leave_last(synthetic(n_users=200, n_items=120, seed=0), seed=0)
_, history, target = (torch.from_numpy(x) for x in windows(split.train, length=10))
count = np.bincount(target[target >= 0], minlength=split.train.n_items)
model = SASRec(split.train.n_items, dim=16, length=10, generator=torch.Generator().manual_seed(0))
opt = EISAM(torch.optim.Adam(model.parameters(), lr=0.003), count, rho=0.05, lam=0.8)

for epoch in range(10):
    for number, rows in enumerate(torch.randperm(len(history)).split(32)):

        def losses(masks: int = 1000 * epoch + number, rows: torch.Tensor = rows) -> tuple[torch.Tensor, torch.Tensor]:
            return model.target_losses(history[rows], target[rows], masks=masks)  # one loss and one item a target

        opt.zero_grad()
        opt.plain(*losses()).backward()
        with opt.ascent():  # stands at w + e*; w again on exit
            opt.penalty(*losses()).backward()
        opt.merge()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        opt.step()

print("a step against its closed form:", check_sharpness(opt, losses))
model.eval()
seen, held_out, shown = split.train.csr(), split.valid, torch.from_numpy(last_histories(split.train, length=10))
with torch.no_grad():
    found = evaluate_full(lambda users: model.score_all(shown[users]).numpy(), held_out.user, seen, held_out.csr())
head = head_items(count)[held_out.item]
for name, own in (("head", head), ("tail", ~head)):
    print(f"validation NDCG@10 of {own.sum()} users with a {name} item: {found['ndcg@10'][own].mean():.3f}")
