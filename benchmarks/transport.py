"""Speed of the transport solvers.

    python benchmarks/transport.py [--users 1000000] [--repeats 3]

Three tables: refreshing the free-support barycenter of 4,331 + 1,709 users in 64 dimensions, against
`ot.lp.free_support_barycenter` from the same support, sweep by sweep; the same after the users moved a little, which is
what a training loop asks for; and one move of a million users by the Gaussian and by the sliced road. The users of a
class are drawn from a mixture of eight lumps of unlike weight and width. Times are CPU seconds of one thread, medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import ot
import torch

from upright.maths import transport as tp
from upright.recommendation.defence import BarycenterDefense

SIZES, DIM, SUPPORT = (4_331, 1_709), 64, 256


def users(sizes: tuple[int, ...], seed: int = 0, dim: int = DIM) -> list[torch.Tensor]:
    """Return float32 embeddings (n_c, dim) of each class: shared lumps, weighted and shifted by class."""
    rng = np.random.default_rng(seed)
    centres, drift = rng.normal(size=(8, dim)), 0.3 * rng.normal(size=dim)
    classes = []
    for c, n in enumerate(sizes):
        lump = rng.choice(8, n, p=rng.dirichlet(np.ones(8)))
        width = np.where(rng.random(n) < 0.2, 1.5, 0.6)[:, None]
        x = rng.standard_normal((n, dim), dtype=np.float32) * width.astype(np.float32)
        x += (centres + c * drift).astype(np.float32)[lump]
        classes.append(torch.from_numpy(x))
    return classes


def clock(call: Callable[[], object], repeats: int) -> tuple[float, object]:
    """Return the median of CPU seconds, and what the last call gave."""
    times, found = [], None
    for _ in range(repeats):
        start = time.process_time()
        found = call()
        times.append(time.process_time() - start)
    return float(np.median(times)), found


def exact_objective(classes: list[torch.Tensor], support: torch.Tensor | np.ndarray) -> float:
    """Return the barycenter objective of a support by exact transport."""
    b, z = np.full(len(support), 1 / len(support)), np.asarray(support, dtype=np.float64)
    return float(np.mean([ot.emd2(np.full(len(x), 1 / len(x)), b, ot.dist(x.double().numpy(), z)) for x in classes]))


def pot_sweep(classes: list[torch.Tensor], support: np.ndarray) -> np.ndarray:
    measures = [x.double().numpy() for x in classes]
    return ot.lp.free_support_barycenter(
        measures, [np.full(len(x), 1 / len(x)) for x in measures], support, numItermax=1, stopThr=0
    )


def sweeps(classes: list[torch.Tensor], support: torch.Tensor, count: int, repeats: int) -> tp.FreeBarycenter:
    """Print each sweep beside POT's, both going on from their own support; return our last one."""
    print("\nsweep  ours CPU s   POT CPU s   ratio  iterations  objective (exact transport)  POT's    ours / POT's")
    ours: tp.FreeBarycenter | None = None
    z, theirs = support, support.double().numpy()
    for sweep in range(count):
        fast, found = clock(lambda z=z, ours=ours: tp.free_barycenter(classes, z, sweeps=1, start=ours), repeats)
        slow, theirs = clock(lambda theirs=theirs: pot_sweep(classes, theirs), repeats)
        ours, z = found, found.support
        value, other = exact_objective(classes, z), exact_objective(classes, theirs)
        print(
            f"{sweep:5} {fast:11.3f} {slow:11.3f} {slow / fast:6.1f}x {ours.inner.iterations:11}"
            f" {value:28.3f} {other:6.3f} {value / other:15.4f}  {'cold' if sweep == 0 else 'warm'}"
        )
    return ours


def refreshes(classes: list[torch.Tensor], before: tp.FreeBarycenter, repeats: int) -> None:
    """Print one warm sweep after every user moved by a share of the users' spread."""
    print("\nmoved by  ours CPU s   POT CPU s   ratio  iterations  ours / POT's objective")
    generator = torch.Generator().manual_seed(1)
    spread = float(torch.cat(classes).std())
    for share in (0.01, 0.05, 0.2):
        moved = [x + share * spread * torch.randn(x.shape, generator=generator) for x in classes]
        support = before.support.double().numpy()
        fast, found = clock(
            lambda moved=moved: tp.free_barycenter(moved, before.support, sweeps=1, start=before), repeats
        )
        slow, theirs = clock(lambda moved=moved, support=support: pot_sweep(moved, support), repeats)
        ratio = exact_objective(moved, found.support) / exact_objective(moved, theirs)
        print(f"{share:8.0%} {fast:11.3f} {slow:11.3f} {slow / fast:6.1f}x {found.inner.iterations:11} {ratio:23.4f}")


def sliced_w2(classes: list[torch.Tensor], directions: torch.Tensor) -> float:
    x, y = (part.double().numpy() for part in classes)
    return float(ot.sliced.sliced_wasserstein_distance(x, y, projections=directions.double().T.numpy())) ** 2


def many(road: str, count: int) -> tuple[float, float, float, float, float]:
    """Return CPU and wall seconds, GiB at most and before, and sliced W2 afterwards over before, for one road."""
    torch.set_num_threads(1)
    classes = users((int(0.71 * count), count - int(0.71 * count)), seed=2)
    sizes = [len(x) for x in classes]
    table, labels = torch.cat(classes), np.repeat(np.arange(len(classes)), sizes)
    defence = BarycenterDefense(labels, method="sliced")
    gib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (30 if sys.platform == "darwin" else 20))  # noqa: E731
    held, wall, cpu = gib(), time.perf_counter(), time.process_time()
    if road == "bures":
        fitted = [tp.Gaussian.of(x) for x in classes]
        centre = tp.bures_barycenter(fitted).gaussian
        moved = [tp.affine_map(g, centre)(x) for g, x in zip(fitted, classes, strict=True)]
    else:
        moved = list(defence.transport(table, rounds=1).split(sizes))
    spent = time.process_time() - cpu, time.perf_counter() - wall
    peak = gib()
    check = tp.random_directions(8, DIM, torch.Generator().manual_seed(9))
    return *spent, peak, held, sliced_w2(moved, check) / sliced_w2(classes, check)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=int, default=1_000_000, help="users of the large runs; 0 leaves them out")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median is printed")
    parser.add_argument("--sweeps", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    classes = users(SIZES)
    everyone = torch.cat(classes)
    some = torch.randperm(len(everyone), generator=torch.Generator().manual_seed(0))[:SUPPORT]
    print(f"free-support barycenter: {' + '.join(map(str, SIZES))} users, {DIM} dimensions, {SUPPORT} points")
    tp.free_barycenter(classes, everyone[some], sweeps=1)  # the first call pays for loading libraries
    refreshes(classes, sweeps(classes, everyone[some], options.sweeps, options.repeats), options.repeats)
    if options.users:
        print(f"\n{options.users:,} users, {DIM} dimensions, two classes")
        print("road      CPU s  wall s  peak GiB  (before)  sliced W2 left")
        for road in ("bures", "sliced"):
            # a process of its own, so that its peak memory is its own
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                cpu, wall, peak, held, left = pool.apply(many, (road, options.users))
            print(f"{road:7} {cpu:7.1f} {wall:7.1f} {peak:9.2f} {held:9.2f} {left:15.2%}")


if __name__ == "__main__":
    main()
