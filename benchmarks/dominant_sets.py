"""Speed of the constrained dominant set solver.

    python benchmarks/dominant_sets.py [--targets 1000000] [--workers 2]

Three tables: the exact solver against replicator dynamics on blocks of published sizes, the candidate search, and
solving every target within 64 candidates of a pool of 50,000. All data are synthetic, all times are CPU seconds of
this process (wall seconds beside them where threads are used).
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy import sparse

from upright.maths import dominant_sets as ds
from upright.methods.in_ucds import similarities

#: name: (pool, targets, items, mean number of items of a pool user, of a target), as in the published splits
WORLDS = {
    "MovieLens-100K": (47, 896, 1349, 270, 63),
    "Gowalla": (56, 1074, 1189, 115, 37),
    "Epinions": (134, 2543, 2060, 91, 24),
}
TOLERANCE = 1e-9


def interactions(rng: np.random.Generator, users: int, items: int, mean: float, tastes: int = 6) -> sparse.csr_array:
    """Popularity by Zipf's law times a taste of each user for one kind of item."""
    popularity = (1.0 + np.arange(items)) ** -0.7
    rows = []
    for _ in range(users):
        weight = popularity * np.where(rng.integers(tastes) == np.arange(items) % tastes, 8.0, 1.0)
        size = int(np.clip(rng.lognormal(np.log(mean) - 0.1, 0.45), 3, items // 2))
        rows.append(rng.choice(items, size, replace=False, p=weight / weight.sum()))
    indptr = np.cumsum([0, *map(len, rows)])
    return sparse.csr_array((np.ones(indptr[-1]), np.concatenate(rows), indptr), shape=(users, items))


def replicator_time(pool: np.ndarray, s: np.ndarray, alpha: float, exact: np.ndarray, limit: int) -> tuple[float, int]:
    """CPU seconds and steps until replicator dynamics is within TOLERANCE (L1) of the exact answer, or to the limit.

    The check against the answer runs every 50th step and outside the clock.
    """
    n = len(s)
    start = time.process_time()
    matrix = np.zeros((n + 1, n + 1))
    matrix[0, 1:] = matrix[1:, 0] = s
    matrix[1:, 1:] = pool - alpha * np.eye(n)
    matrix += alpha
    x = np.full(n + 1, 1.0 / (n + 1))
    spent = time.process_time() - start
    for step in range(50, limit + 1, 50):
        start = time.process_time()
        for _ in range(50):
            x = x * (matrix @ x)
            x /= x.sum()
        spent += time.process_time() - start
        if np.abs(x - exact).sum() <= TOLERANCE:
            return spent, step
    return spent, limit + 1


def against_replicator(sample: int, limit: int) -> None:
    """Print the ratio for each world; the solver's share of the factorisation is counted to every target."""
    print("solver against replicator dynamics, to an L1 distance of 1e-9; CPU seconds a target, median")
    print("world             pool  targets     solver  replicator    steps    ratio  stopped before they were there")
    for seed, (name, (pool, targets, items, busy, idle)) in enumerate(WORLDS.items()):
        rng = np.random.default_rng(seed)
        a, d = interactions(rng, pool, items, busy), interactions(rng, targets, items, idle)
        inside, s = similarities(a, a).toarray(), similarities(d, a).toarray()
        np.fill_diagonal(inside, 0.0)
        inside = (inside + inside.T) / 2.0
        alpha, times = 1.05 * ds.row_sum_bound(inside), []
        for _ in range(5):
            start = time.process_time()
            found = ds.solve_pool(ds.PoolFactor(inside, alpha), s)
            times.append((time.process_time() - start) / targets)
        exact = np.column_stack([found.target_mass, found.weights])
        some = rng.permutation(targets)[:sample]
        slow = [replicator_time(inside, s[t], alpha, exact[t], limit) for t in some]
        solver, dynamics = float(np.median(times)), float(np.median([t for t, _ in slow]))
        steps, late = int(np.median([k for _, k in slow])), sum(k > limit for _, k in slow)
        bound = ">" if late > sample / 2 else " "  # most were stopped: the ratio is at least this
        print(
            f"{name:16} {pool:5} {targets:8} {solver:10.2e} {dynamics:11.2e} {steps:8} {bound}{dynamics / solver:6.0f}x"
            f"  {late} of {len(slow)}"
        )


def neighbourhoods(rng: np.random.Generator, users: int, places: int, items: int, each: int) -> sparse.csr_array:
    """Users anywhere on a ring of items, each with up to `each` items near its own place."""
    home = rng.random(users) * items
    near = rng.normal(0.0, 0.3 * items / places, (users, each))
    item = ((home[:, None] + near).astype(np.int64) % items).ravel()
    flat = sparse.csr_array((np.ones(item.size), (np.repeat(np.arange(users), each), item)), shape=(users, items))
    flat.sum_duplicates()
    flat.data[:] = 1.0
    return flat


def top(block: sparse.csr_array, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the m largest entries of each row as candidates (-1 pads) and affinities."""
    cand, s = np.full((block.shape[0], m), -1, dtype=np.int64), np.zeros((block.shape[0], m))
    for i in range(block.shape[0]):
        row = slice(block.indptr[i], block.indptr[i + 1])
        data = block.data[row]
        best = np.argpartition(-data, m)[:m] if data.size > m else np.arange(data.size)
        cand[i, : best.size], s[i, : best.size] = block.indices[row][best], data[best]
    return cand, s


def many_targets(targets: int, workers: int, pool: int = 50_000, m: int = 64, links: int = 50) -> None:
    """Print times and the peak memory of the candidate search and of the solver."""
    rng = np.random.default_rng(0)
    places = pool // 100
    items = 400 * places
    a = neighbourhoods(rng, pool, places, items, 40)
    start = time.process_time()
    inside = similarities(a, a)
    inside.setdiag(0.0)
    inside.eliminate_zeros()
    cand, s = top(inside, links)
    flat = (s.ravel(), (np.repeat(np.arange(pool), links), np.maximum(cand, 0).ravel()))
    inside = sparse.csr_array(flat, shape=(pool, pool))
    inside.eliminate_zeros()
    inside = sparse.csr_array(inside.maximum(inside.T))  # the 50 nearest of either side
    built = time.process_time() - start
    print(f"\npool of {pool:,}: {inside.nnz / pool:.0f} stored neighbours a row, built in {built:.1f} CPU s")
    cand, s, search = np.full((targets, m), -1, dtype=np.int64), np.zeros((targets, m)), 0.0
    for first in range(0, targets, 20_000):
        rows = slice(first, min(first + 20_000, targets))
        d = neighbourhoods(rng, rows.stop - first, places, items, 12)
        start = time.process_time()
        cand[rows], s[rows] = top(similarities(d, a), m)
        search += time.process_time() - start
    print(f"candidate search, top {m} of a sparse product: {search:.1f} CPU s for {targets:,} targets")
    wall, cpu = time.perf_counter(), time.process_time()
    mass, weights = ds.solve_candidates(s, cand, inside, workers=workers)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    some = rng.permutation(targets)[:2_000]
    worst, linked = 0.0, []
    for t in some:
        real = cand[t] >= 0
        block = inside[cand[t, real]][:, cand[t, real]].toarray()
        alpha = 1.05 * ds.row_sum_bound(block) or max(1.0, s[t].max())
        y = weights[t : t + 1, real]
        one = ds.Solution(mass[t : t + 1], y, (s[t : t + 1, real] * y).sum(1), 0)
        worst = max(worst, float(ds.kkt_residual(block, alpha, s[t : t + 1, real], one)[0]))
        linked.append((block > 0).mean() if block.size else 0.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (30 if sys.platform == "darwin" else 20))
    members, listed = (weights > 0).sum(1).mean(), (cand >= 0).sum(1).mean()
    print(f"solver: {cpu:.1f} CPU s, {wall:.1f} wall s, {workers} worker(s), {1e6 * cpu / targets:.0f} CPU us a target")
    print(f"  linked pairs in a block {np.mean(linked):.0%}, members of a set {members:.1f} of {listed:.1f} candidates")
    print(f"  worst KKT residual of {some.size:,} targets {worst:.1e}, smallest target mass {mass.min():.3f}")
    print(f"  peak memory of the process {peak:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", type=int, default=1_000_000, help="targets of the large run")
    parser.add_argument("--workers", type=int, default=2, help="threads of the large run")
    parser.add_argument("--sample", type=int, default=15, help="targets a world that replicator dynamics runs for")
    parser.add_argument("--limit", type=int, default=200_000, help="most replicator steps")
    options = parser.parse_args()
    against_replicator(options.sample, options.limit)
    if options.targets:
        many_targets(options.targets, options.workers)


if __name__ == "__main__":
    main()
