"""Claim: LightGCN training and full-catalogue evaluation take at most half the time of their peers.

    python benchmarks/recommenders.py [--repeats 5] [--threads 1]

Peers are measured in the same process, in turns, on the same data, and checked to give the same numbers first.

* LightGCN epoch, BPR loss, Adam, batch 2,048, on a made-up log of the size of MovieLens-100K: upright against the same
  model built from PyTorch Geometric's `LGConv`, used in three ways: by its documentation (`edge_index`), with the
  normalisation computed once, and with a normalised CSR matrix in place of `edge_index`, which is the best it has.
* Full ranking of all users by given scores: upright (five metrics and exposure) against a loop in the style of
  RecBole (same five metrics) at RecBole's default batch of 4,096 scores' worth of users and at 512 users, and
  against `cornac.eval_methods.base_method.ranking_eval` (NDCG and recall).

CPU seconds are `time.process_time` (all threads), wall seconds `time.perf_counter`; both are medians. One thread
by default: on a busy machine, threads that wait for each other count as CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch.nn.functional import embedding, softplus

from upright.metrics.ranking import evaluate_full
from upright.models.recommenders import LightGCN, draw_negatives

warnings.filterwarnings("ignore")

N_USERS, N_ITEMS, N_ROWS, BATCH, DIM, LAYERS = 943, 1349, 69_500, 2048, 64, 3


def make_log(seed: int = 0) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Train of 69,500 pairs and a test of a quarter as many: Zipf items, gamma activity, nobody without a train row."""
    rng = np.random.default_rng(seed)
    item_law = 1 / np.arange(1, N_ITEMS + 1) ** 0.8
    user_law = rng.gamma(0.8, 1.0, N_USERS) + 0.05
    # Gumbel noise on log-weights: the largest keys are a sample without replacement from the product law.
    keys = np.log(np.outer(user_law, item_law)) + rng.gumbel(size=(N_USERS, N_ITEMS))
    keys[np.arange(N_USERS), rng.integers(0, N_ITEMS, N_USERS)] = np.inf
    keys[rng.integers(0, N_USERS, N_ITEMS), np.arange(N_ITEMS)] = np.inf
    order = np.argsort(-keys, axis=None)[: N_ROWS + N_ROWS // 4]
    order[4000:] = rng.permutation(order[4000:])
    parts = []
    for rows in (order[:N_ROWS], order[N_ROWS:]):
        user, item = np.divmod(rows, N_ITEMS)
        parts.append(sparse.csr_array((np.ones(rows.size, np.float32), (user, item)), shape=(N_USERS, N_ITEMS)))
    return parts[0], parts[1]


class PygLightGCN(torch.nn.Module):
    """The same table and the same mean over layers, propagated by PyTorch Geometric."""

    def __init__(self, ours: LightGCN, train: sparse.csr_array, use: str) -> None:
        from torch_geometric.nn import LGConv
        from torch_geometric.nn.conv.gcn_conv import gcn_norm

        super().__init__()
        self.table = torch.nn.Parameter(ours.table.detach().clone())
        user, item = (torch.from_numpy(x.astype(np.int64)) for x in train.nonzero())
        edges = torch.stack([torch.cat([user, item + N_USERS]), torch.cat([item + N_USERS, user])])
        self.graph, self.weight = edges, None
        if use != "documented":
            self.graph, self.weight = gcn_norm(edges, None, N_USERS + N_ITEMS, add_self_loops=False)
        if use == "csr":
            size = (N_USERS + N_ITEMS,) * 2
            self.graph = torch.sparse_coo_tensor(self.graph, self.weight, size).coalesce().to_sparse_csr()
            self.weight = None
        self.convs = torch.nn.ModuleList([LGConv(normalize=use == "documented") for _ in range(LAYERS)])

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the propagated users and items."""
        layer = total = self.table
        for conv in self.convs:
            layer = conv(layer, self.graph, self.weight) if self.weight is not None else conv(layer, self.graph)
            total = total + layer
        total = total / (LAYERS + 1)
        return total[:N_USERS], total[N_USERS:]


def train_epoch(model: torch.nn.Module, train: sparse.csr_array) -> float:
    """One epoch of BPR with an L2 term; returns the last loss."""
    rng = np.random.default_rng(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    user, item = (x.astype(np.int64) for x in train.nonzero())
    order = rng.permutation(user.size)
    user, item = user[order], item[order]
    other = draw_negatives(user, train, N_ITEMS, rng)[:, 0]
    triples = torch.from_numpy(np.stack([user, item, other]))
    last = 0.0
    for u, i, j in zip(*(part.split(BATCH) for part in triples), strict=True):
        users, items = model.tables()
        rows = embedding(u, users)
        margin = (rows * (embedding(i, items) - embedding(j, items))).sum(-1)
        ego = embedding(torch.cat([u, i + N_USERS, j + N_USERS]), model.table)
        loss = softplus(-margin).mean() + 1e-4 * ego.square().sum() / u.numel()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        last = loss.item()
    return last


def recbole_style(
    scores: NDArray[np.float32], seen: sparse.csr_array, relevant: sparse.csr_array, users_a_batch: int, k: int = 10
) -> dict[str, float]:
    """Mask by index lists, `torch.topk`, a matrix of positives per batch; metrics with a loop over users."""
    history = [torch.from_numpy(seen.indices[a:b].astype(np.int64)) for a, b in pairs(seen.indptr)]
    positive = [torch.from_numpy(relevant.indices[a:b].astype(np.int64)) for a, b in pairs(relevant.indptr)]
    users = np.flatnonzero(np.diff(relevant.indptr))
    collected = []
    for begin in range(0, users.size, users_a_batch):
        some = users[begin : begin + users_a_batch].tolist()
        batch = torch.from_numpy(scores[some])
        rows = torch.cat([torch.full_like(history[u], r) for r, u in enumerate(some)])
        batch[rows, torch.cat([history[u] for u in some])] = -np.inf
        matrix = torch.zeros(batch.shape, dtype=torch.int)
        rows = torch.cat([torch.full_like(positive[u], r) for r, u in enumerate(some)])
        matrix[rows, torch.cat([positive[u] for u in some])] = 1
        top = torch.topk(batch, k, dim=-1).indices
        collected.append(torch.cat([torch.gather(matrix, 1, top), matrix.sum(1, keepdim=True)], dim=1))
    table = torch.cat(collected).numpy()
    totals = dict.fromkeys(("ndcg@10", "recall@10", "mrr@10", "hit@10", "precision@10"), 0.0)
    discount = 1 / np.log2(np.arange(2, k + 2))
    for row in table:
        hits, n = row[:k], int(row[k])
        where = np.flatnonzero(hits)
        totals["ndcg@10"] += (hits * discount).sum() / discount[: min(n, k)].sum()
        totals["recall@10"] += hits.sum() / n
        totals["mrr@10"] += 1 / (where[0] + 1) if where.size else 0
        totals["hit@10"] += float(where.size > 0)
        totals["precision@10"] += hits.sum() / k
    return {name: total / len(table) for name, total in totals.items()}


def pairs(indptr: NDArray[np.int32]) -> list[tuple[int, int]]:
    return list(zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True))


def cornac_call(scores: NDArray[np.float32], train: sparse.csr_array, test: sparse.csr_array) -> Callable[[], object]:
    """`ranking_eval` on ready data sets and a model that only hands out its row of scores."""
    from cornac.data import Dataset
    from cornac.eval_methods.base_method import ranking_eval
    from cornac.metrics import NDCG, Recall
    from cornac.models import Recommender

    class Given(Recommender):
        def score(self, user_idx, item_idx=None):
            return scores[user_idx]

    def dataset(matrix: sparse.csr_array) -> Dataset:
        known = (OrderedDict((x, x) for x in range(n)) for n in (N_USERS, N_ITEMS))
        rows = [(int(u), int(i), 1.0) for u, i in zip(*matrix.nonzero(), strict=True)]
        return Dataset.build(rows, "UIR", *known)

    sets = dataset(train), dataset(test)
    model = Given(name="given", trainable=False, verbose=False).fit(sets[0])
    return lambda: ranking_eval(model, [NDCG(10), Recall(10)], sets[0], sets[1])


@torch.no_grad()
def apart(models: dict[str, torch.nn.Module]) -> float:
    """Largest difference between the propagated tables of the first model and of any other."""
    first, *others = (torch.cat(model.tables()) for model in models.values())
    return max(float((first - other).abs().max()) for other in others)


def measure(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median (CPU, wall) seconds of each call; calls take turns, so a busy machine is busy for all."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: tuple(statistics.median(x) for x in zip(*t, strict=True)) for name, t in times.items()}


def show(title: str, result: dict[str, tuple[float, float]], repeats: int) -> None:
    (ours_cpu, ours_wall), width = next(iter(result.values())), max(map(len, result))
    print(f"\n{title}\n{'':{width}}  CPU s     wall s    CPU ratio  wall ratio   (medians of {repeats})")
    for name, (cpu, wall) in result.items():
        print(f"{name:{width}}  {cpu:<8.4f}  {wall:<8.4f}  {cpu / ours_cpu:<9.1f}  {wall / ours_wall:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train, test = make_log()
    print(f"{N_USERS} users, {N_ITEMS} items, {train.nnz} train and {test.nnz} test rows; {options.threads} thread(s)")

    ours = LightGCN(N_USERS, N_ITEMS, train, DIM, LAYERS, generator=torch.Generator().manual_seed(0))
    models: dict[str, torch.nn.Module] = {"upright": ours}
    for use in ("documented", "normalised once", "csr"):
        models[f"PyTorch Geometric, {use}"] = PygLightGCN(ours, train, use)
    before = apart(models)
    losses = [train_epoch(model, train) for model in models.values()]
    print(f"tables differ by at most {before:.1e} before and {apart(models):.1e} after one epoch, losses {losses}")
    epochs = {name: lambda model=model: train_epoch(model, train) for name, model in models.items()}
    show("LightGCN, one epoch", measure(epochs, options.repeats), options.repeats)

    with torch.no_grad():
        users, items = ours.tables()
        scores = ours.score_all(users, items).numpy()
    everybody = np.arange(N_USERS)
    small = max(1, 4096 // N_ITEMS)
    cornac = cornac_call(scores, train, test)
    calls: dict[str, Callable[[], object]] = {
        "upright": lambda: evaluate_full(lambda u: scores[u], everybody, train, test),
        f"loop in RecBole's style, {small} users a batch": lambda: recbole_style(scores, train, test, small),
        "loop in RecBole's style, 512 users a batch": lambda: recbole_style(scores, train, test, 512),
        "cornac ranking_eval": cornac,
    }
    mine = evaluate_full(lambda u: scores[u], everybody, train, test)
    loop, (peer, _) = recbole_style(scores, train, test, 512), cornac()
    gap = max(abs(np.nanmean(mine[name]) - value) for name, value in loop.items())
    theirs = max(abs(np.nanmean(mine[name]) - v) for name, v in zip(("ndcg@10", "recall@10"), peer, strict=True))
    print(f"\nmean metrics differ from the loop by at most {gap:.1e}, from cornac by {theirs:.1e}")
    show("Full ranking of all users", measure(calls, max(options.repeats, 9)), max(options.repeats, 9))


if __name__ == "__main__":
    main()
