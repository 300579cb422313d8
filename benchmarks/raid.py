"""What the defence adds to the time of a LightGCN epoch, by variant. The goal is at most 30 %.

    python benchmarks/raid.py [--repeats 5] [--threads 1] [--refresh 50]

A made-up log of the size of MovieLens-100K, one binary attribute (71 % and 29 %) of which half of the users are fitted,
BPR loss, Adam, batch 2,048, width 64: plain epochs and epochs with each variant take turns in one process, all from the
same weights. An epoch has 35 batches, so the barycenter is found once or not at all in it at the default refresh of
50 steps; an epoch is therefore timed as its steps without a refresh plus 35 / 50 of a refresh, each measured. `free`
starts each refresh where the last one ended, here on the same vectors, so in a training it costs more.

CPU seconds are `time.process_time` (all threads), medians over the repeats. One thread by default: on a busy machine,
threads that wait for each other count as CPU time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import numpy as np
import torch
from scipy import sparse

from upright.models.recommenders import LightGCN, draw_negatives
from upright.recommendation.controls import exposed
from upright.recommendation.defence import BarycenterDefense

N_USERS, N_ITEMS, N_ROWS, BATCH, DIM, LAYERS = 943, 1349, 70_000, 2048, 64, 2
VARIANTS = ("sliced", "bures", "free", "mean", "mmd")


def make_log(seed: int = 0) -> sparse.csr_array:
    """Return 70,000 pairs: Zipf items, gamma activity, nobody without a row."""
    rng = np.random.default_rng(seed)
    weight = np.outer(rng.gamma(0.8, 1.0, N_USERS) + 0.05, 1 / np.arange(1, N_ITEMS + 1) ** 0.8)
    keys = np.log(weight) + rng.gumbel(size=weight.shape)  # the largest are a sample without replacement
    keys[np.arange(N_USERS), rng.integers(0, N_ITEMS, N_USERS)] = np.inf
    user, item = np.divmod(np.argsort(-keys, axis=None)[:N_ROWS], N_ITEMS)
    return sparse.csr_array((np.ones(N_ROWS, np.float32), (user, item)), shape=(N_USERS, N_ITEMS))


def epoch(model: LightGCN, log: sparse.csr_array, guard: BarycenterDefense | None, alpha: float = 0.1) -> float:
    """Train one epoch and return its CPU seconds; the barycenter is at hand and is not found anew."""
    start = time.process_time()
    rng = np.random.default_rng(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    user, item = (x.astype(np.int64) for x in log.nonzero())
    order = rng.permutation(user.size)
    user, item = user[order], item[order]
    triples = torch.from_numpy(np.stack([user, item, draw_negatives(user, log, N_ITEMS, rng)[:, 0]]))
    for u, i, j in zip(*(part.split(BATCH) for part in triples), strict=True):
        users, items = model.tables()
        own = users.index_select(0, u)
        margin = model.score(own, items.index_select(0, i)) - model.score(own, items.index_select(0, j))
        decay = sum(row.square().sum(1).mean() for row in model.ego(u, torch.cat([i, j])))
        loss = torch.nn.functional.softplus(-margin).mean() + 0.015 * decay
        if guard is not None:
            loss = loss + alpha * guard.loss(u, exposed(model, users))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return time.process_time() - start


def main() -> None:
    """Print one line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--refresh", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    log = make_log()
    steps = -(-N_ROWS // BATCH)
    first = LightGCN(N_USERS, N_ITEMS, log, DIM, LAYERS, generator=torch.Generator().manual_seed(0))
    labels = np.where(np.random.default_rng(1).random(N_USERS) < 0.71, "a", "b")
    epoch(first, log, None)  # warm up, and vectors that are not noise alone
    guards = {v: BarycenterDefense(labels, fit=np.arange(N_USERS) % 2 == 0, method=v) for v in VARIANTS}
    plain: list[float] = []
    pulled: dict[str, list[float]] = {v: [] for v in VARIANTS}
    found: dict[str, list[float]] = {v: [] for v in VARIANTS}
    for _ in range(args.repeats):
        plain.append(epoch(copy.deepcopy(first), log, None))
        for variant, guard in guards.items():
            held = exposed(first).detach()
            start = time.process_time()
            guard.refresh(held)
            found[variant].append(time.process_time() - start)
            pulled[variant].append(epoch(copy.deepcopy(first), log, guard))
    base = statistics.median(plain)
    print(f"plain epoch of {steps} steps: {base:.3f} CPU s (median of {args.repeats})")
    print("variant   steps, s   refresh, s   epoch, s   overhead")
    for variant in VARIANTS:
        epochs, refresh = statistics.median(pulled[variant]), statistics.median(found[variant])
        whole = epochs + refresh * steps / args.refresh
        print(f"{variant:8} {epochs:9.3f} {refresh:12.3f} {whole:10.3f} {whole / base - 1:9.0%}")


if __name__ == "__main__":
    main()
